"""Norm tweaking and the final tune: what trains, what is kept, what is rolled back."""

import pytest
import torch

from normtweak_core.errors import NonFiniteError
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.model.structure import find_linears, linear_weight, set_linear_weight
from normtweak_core.quantization.block import quantize_block
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.gptq import round_to_nearest
from normtweak_core.quantization.grid import GridSpec
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.streams import run_stream
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.training.objective import divergence
from normtweak_core.tweak.config import FinalTuneConfig, NormTweakConfig
from normtweak_core.tweak.final import TuningWindows, final_tune, walked_targets
from normtweak_core.tweak.tweak import (
    SHARES,
    WithMasters,
    held_out,
    norm_parameters,
    round_norms,
    tweak_norms,
    tweak_rate,
)
from tests.core.model.families import save, tokens


def rounded_in_place(module, bits=3):
    for linear in find_linears(module).values():
        weight = linear_weight(linear).float()
        spec = GridSpec(bits, False, True, torch.float16)
        set_linear_weight(linear, round_to_nearest(weight, 16, spec).weight.dequantize())
    return module


@pytest.fixture
def damaged(tiny_folders, seeded):
    """A function: family -> (quantized block, its input, float output, runner)."""

    def make(name):
        ids = torch.randint(0, 96, (32, 24), generator=seeded(5))
        walk = BlockWalk(StreamedModel(tiny_folders[name], torch.float32, "cpu"), ids)
        x = walk.start().x_f
        target = run_stream(walk.load(0), x, walk.runner(0))
        return rounded_in_place(walk.load(0)), x, target, walk.runner(0)

    return make


@pytest.mark.parametrize("name", ["llama", "neox"])
@pytest.mark.parametrize("loss", ["channel", "mse", "kl"])
def test_the_held_out_loss_falls_and_only_norms_change(damaged, name, loss):
    block, x, target, run = damaged(name)
    before = {key: value.clone() for key, value in block.state_dict().items()}
    config = NormTweakConfig(loss=loss, rollback=False)
    report, masters = tweak_norms(block, x, target, 28, run, config, 3e-3, torch.float16)
    assert report.held_out_after < report.held_out_before
    for key, value in block.state_dict().items():
        changed = not torch.equal(value, before[key])
        assert changed == (key in masters), key
    expected = {"llama": 2, "neox": 4}[name]  # gains; gains and biases
    assert len(masters) == expected
    assert all(master.dtype == torch.float32 for master in masters.values())
    for key, master in masters.items():  # the block holds what the export will hold
        assert torch.equal(block.state_dict()[key], master.half().float())


def test_statistics_that_agree_at_the_cost_of_every_token_are_rolled_back(damaged, seeded):
    block, x, target, run = damaged("llama")
    # Noise with more variance than the block's output: the closer the variance, the larger |o - t|.
    noise = 1.5 * target.std() * torch.randn(target.shape, generator=seeded(8))
    report, masters = tweak_norms(block, x, noise, 28, run, NormTweakConfig(), 1e-2, torch.float16)
    assert report.held_out_after < report.held_out_before
    assert report.distance_after > report.distance_before
    assert not report.accepted
    assert masters == {}


def test_of_the_parts_that_pass_the_one_nearest_to_the_target_is_kept(damaged):
    block, x, target, run = damaged("llama")
    start = {key: value.clone() for key, value in block.state_dict().items()}
    before = held_out(block, x, target, 28, run, "channel")
    free = NormTweakConfig(rollback=False)
    _, whole = tweak_norms(block, x, target, 28, run, free, 2e-2, torch.float16)
    tried = {}
    for share in SHARES:
        moved = {key: start[key] + share * (whole[key] - start[key]) for key in whole}
        block.load_state_dict({key: value.half().float() for key, value in moved.items()}, False)
        tried[share] = held_out(block, x, target, 28, run, "channel")
    block.load_state_dict(start)
    report, _ = tweak_norms(block, x, target, 28, run, NormTweakConfig(), 2e-2, torch.float16)
    passed = [share for share in SHARES if tried[share].better_than(before)]
    assert 1 < len(passed)
    assert report.accepted
    assert report.share == min(passed, key=lambda share: tried[share].distance) != 1.0
    assert report.distance_after == tried[report.share].distance


def test_distance_counts_every_token_alike(damaged):
    block, x, target, run = damaged("llama")
    output = run_stream(block, x[28:], run)
    relative = (output - target[28:]).norm(dim=-1) / target[28:].norm(dim=-1)
    found = held_out(block, x, target, 28, run, "mse")
    assert found.distance == pytest.approx(relative.square().mean().sqrt().item(), rel=1e-5)


def test_a_token_whose_float_output_is_zero_leaves_the_distance_finite(damaged):
    block, x, target, run = damaged("llama")
    target[28, 3] = 0
    found = held_out(block, x, target, 28, run, "mse")
    assert torch.isfinite(torch.tensor(found.distance))


def test_a_tweak_that_hurts_is_rolled_back_to_the_bit(damaged):
    block, x, target, run = damaged("llama")
    before = {key: value.clone() for key, value in block.state_dict().items()}
    report, masters = tweak_norms(block, x, target, 28, run, NormTweakConfig(), 3.0, torch.float16)
    assert not report.accepted
    assert report.held_out_after > report.held_out_before
    assert masters == {}
    for key, value in block.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("rollback", [True, False])
def test_norms_without_weights_are_left_alone_and_that_is_no_problem(rollback, tmp_path, seeded):
    folder = save("olmo", tmp_path)
    walk = BlockWalk(StreamedModel(folder, torch.float32, "cpu"), tokens(8))
    config = NormTweakConfig(rollback=rollback)
    plan = BlockPlan(0, 3, QuantizationConfig(bits=3, group_size=None), config, torch.float16)
    done = quantize_block(walk.load(0), walk.start(), walk.runner(0), plan)
    assert len(done.layers) == 7
    assert (done.norms, done.report.tweak.outcome, done.report.problems()) == ({}, "no norms", [])
    assert done.report.drift_tweaked == done.report.drift_quantized > 0

    quantized = rounded_in_place(load_causal_lm(folder, torch.float32, "cpu"))
    windows = TuningWindows(tokens(8), 7)
    config = FinalTuneConfig(steps=2)
    expected = walked_targets(StreamedModel(folder, torch.float32, "cpu"), windows)
    report, norms = final_tune(quantized, expected, windows, config, {}, torch.float16, 0)
    assert (norms, report.outcome) == ({}, "no norms")
    assert report.held_out_after == report.held_out_before > 0


def test_without_rollback_a_tweak_that_hurts_is_kept(damaged):
    block, x, target, run = damaged("llama")
    report, masters = tweak_norms(
        block, x, target, 28, run, NormTweakConfig(rollback=False), 3.0, torch.float16
    )
    assert report.accepted
    assert masters


def test_more_iterations_take_more_steps(damaged):
    results = []
    for iterations in (1, 4):
        block, x, target, run = damaged("llama")
        config = NormTweakConfig(loss="mse", iterations=iterations)
        results.append(tweak_norms(block, x, target, 28, run, config, 1e-3, torch.float16)[0])
    assert results[1].held_out_after < results[0].held_out_after


def test_a_loss_that_is_not_finite_stops_with_the_rate(damaged):
    block, x, target, run = damaged("llama")
    target[3] = torch.inf
    with pytest.raises(
        NonFiniteError, match=r"found inf at step 3: lower norm_tweak.lr \(now 0.1\)"
    ):
        tweak_norms(block, x, target, 28, run, NormTweakConfig(loss="mse"), 0.1, torch.float16)


def test_rates_over_depth():
    def rates(schedule, scale=2.0):
        config = NormTweakConfig(lr=1e-3, lr_scale=scale, schedule=schedule)
        return [tweak_rate(config, i, 4) / 1e-3 for i in range(4)]

    assert rates("linear") == pytest.approx([1.0, 1.5, 2.0, 2.5])  # the paper's rule
    assert rates("constant") == pytest.approx([1.0] * 4)
    assert rates("step") == pytest.approx([1.0, 1.0, 3.0, 3.0])
    assert rates("cosine") == pytest.approx([1.0, 1.2928932, 2.0, 2.7071068])
    assert rates("exponential") == pytest.approx([3**0.0, 3**0.25, 3**0.5, 3**0.75])


def test_masters_gather_steps_that_half_precision_would_lose(tiny_folders):
    model = StreamedModel(tiny_folders["llama"], torch.bfloat16, "cpu")
    block = model.load_block(0)
    name = "input_layernorm.weight"
    master = block.get_parameter(name).float().clone().requires_grad_(True)
    hidden = torch.ones(1, 4, 32, dtype=torch.bfloat16)
    _, calls = model.embed(torch.zeros(1, 4, dtype=torch.int64))
    output = model.run_block(WithMasters(block, {name: master}), hidden, calls[0])
    output.float().square().sum().backward()
    assert master.grad.dtype == torch.float32
    assert block.get_parameter(name).grad is None


def test_norms_are_rounded_to_the_export_dtype(tiny_folders):
    block = StreamedModel(tiny_folders["neox"], torch.float32, "cpu").load_block(0)
    with torch.no_grad():
        for parameter in norm_parameters(block).values():
            parameter.add_(1e-4)
    round_norms(block, torch.bfloat16)
    for parameter in norm_parameters(block).values():
        assert torch.equal(parameter, parameter.bfloat16().float())


@pytest.fixture
def models(tiny_folders, seeded):
    """A damaged copy of a model, what the model itself says of windows, and these windows."""
    quantized = rounded_in_place(load_causal_lm(tiny_folders["llama"], torch.float32, "cpu"))
    round_norms(quantized, torch.float16)
    windows = TuningWindows(torch.randint(0, 96, (24, 24), generator=seeded(6)), 21)
    float_model = StreamedModel(tiny_folders["llama"], torch.float32, "cpu")
    return quantized, walked_targets(float_model, windows), windows


def test_the_targets_of_a_final_tune_are_the_float_models_own_logits(models, tiny_folders):
    _, expected, windows = models
    whole = load_causal_lm(tiny_folders["llama"], torch.float32, "cpu")
    for number, ids in enumerate(windows.input_ids.split(1)):
        assert torch.equal(expected.logits(number), whole(ids, use_cache=False).logits)


def test_final_tune_lowers_the_held_out_divergence_and_leaves_the_model_as_it_was(models):
    quantized, expected, windows = models
    before = {key: value.clone() for key, value in quantized.state_dict().items()}
    steps = []
    report, norms = final_tune(
        quantized,
        expected,
        windows,
        FinalTuneConfig(steps=40, lr=3e-3),
        {},
        torch.float16,
        0,
        lambda step, total, loss: steps.append((step, total)),
    )
    assert report.accepted
    assert report.held_out_after < report.held_out_before
    assert sorted(norms) == sorted(norm_parameters(quantized))
    assert "model.norm.weight" in norms
    assert steps[-1] == (40, 40)
    for key, value in quantized.state_dict().items():
        assert torch.equal(value, before[key])


def test_final_tune_is_a_function_of_its_seed(models):
    results = [
        final_tune(*models, FinalTuneConfig(steps=5), {}, torch.float16, seed)[1][
            "model.norm.weight"
        ]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_final_tune_that_hurts_keeps_nothing(models):
    report, norms = final_tune(*models, FinalTuneConfig(steps=5, lr=5.0), {}, torch.float16, 0)
    assert not report.accepted
    assert norms == {}


def test_final_tune_stops_when_the_loss_is_not_finite(models):
    quantized, expected, windows = models
    bad = {"model.norm.weight": torch.full((32,), torch.nan)}
    with pytest.raises(
        NonFiniteError, match=r"found nan at step 0: lower final_tune.lr \(now 0.001\)"
    ):
        final_tune(quantized, expected, windows, FinalTuneConfig(steps=2), bad, torch.float16, 0)


def test_divergence_by_hand():
    p = torch.log(torch.tensor([[[0.5, 0.5]]]))
    q = torch.log(torch.tensor([[[0.25, 0.75]]]))
    expected = 0.5 * torch.log(torch.tensor(2.0)) + 0.5 * torch.log(torch.tensor(0.5 / 0.75))
    assert divergence(p, q).item() == pytest.approx(expected.item(), rel=1e-6)
    assert divergence(p, p + 3).item() == pytest.approx(0.0, abs=1e-7)
