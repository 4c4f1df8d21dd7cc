"""The core on a CUDA device: the answers of the CPU, and training in bfloat16 that resumes."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from normtweak_core.evaluate.divergence import compare, perplexity
from normtweak_core.finetune.block import finetune_block
from normtweak_core.finetune.config import FinetuneConfig
from normtweak_core.finetune.model import put_on_grids
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.quantization.block import quantize_block
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.ternary.config import TernaryConfig
from normtweak_core.ternary.schedule import lambdas
from normtweak_core.ternary.surgery import (
    apply_surgery,
    plan_surgery,
    set_lambdas,
    trained_blocks,
    trained_linears,
)
from normtweak_core.training.objective import Objective
from normtweak_core.training.rates import Rates
from normtweak_core.training.trainer import Trainer, TrainingSetup
from normtweak_core.tweak.config import NormTweakConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

STEPS = 12
WINDOWS = torch.randint(0, 96, (24, 32), generator=torch.Generator().manual_seed(3))


def quantized(folder, device):
    walk = BlockWalk(StreamedModel(folder, torch.float32, device), WINDOWS)
    streams, blocks = walk.start(), []
    config = QuantizationConfig(bits=4, group_size=16)
    for index in range(walk.num_blocks):
        plan = BlockPlan(index, walk.num_blocks, config, NormTweakConfig(), torch.float16)
        blocks.append(quantize_block(walk.load(index), streams, walk.runner(index), plan))
        streams = blocks[-1].streams
    return walk, blocks


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_a_quantized_block_is_that_of_the_cpu_up_to_ties(tiny_folders, name):
    (_, here), (walk, there) = (quantized(tiny_folders[name], d) for d in ("cpu", "cuda:0"))
    first = zip(here[0].layers.items(), there[0].layers.items(), strict=True)
    for (name_here, one), (name_there, other) in first:
        assert name_here == name_there
        # Sums in another order can tip a value at the middle of two levels, and what follows it.
        assert (one.codes == other.codes.cpu()).float().mean() > 0.98
        torch.testing.assert_close(other.scales.cpu(), one.scales, rtol=1e-3, atol=1e-6)
    assert there[-1].streams.x_q.device.type in ("cpu", "cuda")
    one, other = (b[-1].streams.x_f.cpu() for b in (here, there))
    torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3)
    gaps = [
        (b[-1].streams.x_q - b[-1].streams.x_f).norm() / b[-1].streams.x_f.norm()
        for b in (here, there)
    ]
    assert gaps[1].item() == pytest.approx(gaps[0].item(), rel=0.1)
    assert walk.num_blocks == 3


def test_an_evaluation_gives_the_numbers_of_the_cpu(tiny_folders):
    def measured(device):
        a, b = (
            AutoModelForCausalLM.from_pretrained(tiny_folders["llama"]).eval().to(device)
            for _ in range(2)
        )
        with torch.no_grad():
            a.model.layers[0].mlp.up_proj.weight.mul_(1.1)
        return perplexity(a, WINDOWS).metrics("float") | compare(a, b, WINDOWS).metrics()

    here, there = measured("cpu"), measured("cuda:0")
    assert here.keys() == there.keys()
    for name, value in here.items():
        assert there[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def a_trainer(folder, checkpoints):
    model, teacher = (
        AutoModelForCausalLM.from_pretrained(folder).eval().to("cuda:0") for _ in range(2)
    )
    config = TernaryConfig(steps=STEPS, batch=4, start="absmean")
    plan = plan_surgery(model, WINDOWS[:4])
    apply_surgery(model, plan, config)
    setup = TrainingSetup(
        STEPS, 4, Rates(STEPS, 3e-3), Objective("kd"), save_every=5, dtype="bfloat16"
    )

    def before_step(model, step):
        set_lambdas(model, lambdas(config, step, len(plan.blocks)), ramp_norm=True)

    return Trainer(model, teacher, WINDOWS, setup, checkpoints, "origin", before_step)


def test_ternary_training_in_bfloat16_resumes_to_the_same_bytes(tiny_folders, tmp_path):
    trainer = a_trainer(tiny_folders["llama"], tmp_path / "whole")
    outputs = []
    linear = next(iter(trained_linears(trained_blocks(trainer.model)[0]).values()))
    linear.register_forward_hook(lambda _, __, output: outputs.append(output.dtype))
    whole = trainer.run(STEPS)
    assert set(outputs) == {torch.bfloat16}
    assert all(weight.dtype == torch.float32 for weight in whole.weights.values())
    a_trainer(tiny_folders["llama"], tmp_path / "cut").run(7)
    again = a_trainer(tiny_folders["llama"], tmp_path / "cut").run(STEPS)
    assert again.sha256() == whole.sha256()


def test_a_block_trained_on_its_float_output_comes_nearer(tiny_folders):
    walk = BlockWalk(StreamedModel(tiny_folders["llama"], torch.float32, "cuda:0"), WINDOWS)
    config = FinetuneConfig(block_steps=60, batch=4, lr=3e-2, scale_lr=3e-3)
    plan = BlockPlan(
        0, 3, QuantizationConfig(bits=2, group_size=16), NormTweakConfig(), torch.float16
    )
    streams = walk.start()
    done = quantize_block(walk.load(0), streams, walk.runner(0), plan)
    layers, prefix = done.layers, "model.layers.0."
    block = put_on_grids(walk.load(0), layers, {}, config, "full", torch.float16, 0, prefix)
    block.to("cuda:0")
    report = finetune_block(walk.load(0), block, walk.start(), walk.runner(0), config, 0, 0).report
    assert report.accepted
    assert report.distance_after < report.distance_before
