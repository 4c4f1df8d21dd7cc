"""A block that is trained once it is quantized: what comes of it, and what where it fails."""

import pytest
import torch

from normtweak_core.finetune.config import BlockTrainingConfig
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.quantization.block import quantize_block
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.drift import token_distance
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.storage import quantized_copy
from normtweak_core.quantization.streams import Streams, num_training_windows, run_stream
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.tweak.config import NormTweakConfig

TRAINING = BlockTrainingConfig(enabled=True, steps=40, batch=4, lr=2e-2)


def given(folder, seeded, dtype=torch.float32):
    ids = torch.randint(0, 96, (24, 16), generator=seeded(3))
    walk = BlockWalk(StreamedModel(folder, dtype, "cpu"), ids)
    x_f = walk.start().x_f
    noise = torch.randn(x_f.shape, generator=seeded(4)).to(dtype)
    return walk, Streams(x_f, x_f + 0.05 * noise)


def quantized(walk, streams, training, levels=None, tweak=False, seed=0):
    grid = {"bits": 2, "group_size": 16, **(levels or {})}
    plan = BlockPlan(
        0,
        walk.num_blocks,
        QuantizationConfig(**grid),
        NormTweakConfig(enabled=tweak, lr=1e-2),
        torch.float16,
        training,
        seed,
    )
    copied = Streams(streams.x_f.clone(), streams.x_q.clone())
    return quantize_block(walk.load(0), copied, walk.runner(0), plan)


def distances(done):
    """The distance on windows that are trained on, and on the others."""
    x_q, x_f = done.streams.x_q, done.streams.x_f
    count = num_training_windows(len(x_f))
    parts = (slice(count), slice(count, None))
    return [token_distance(x_q[part], x_f[part]).sqrt().item() for part in parts]


@pytest.mark.parametrize("name", ["llama", "neox"])
@pytest.mark.parametrize("levels", [{}, {"symmetric": True, "levels": "ternary"}])
def test_a_trained_block_is_nearer_to_the_float_one_and_lies_on_its_grid(
    tiny_folders, seeded, name, levels
):
    walk, streams = given(tiny_folders[name], seeded)
    plain = quantized(walk, streams, BlockTrainingConfig(), levels)
    done = quantized(walk, streams, TRAINING, levels)
    report = done.report.training
    assert report.accepted
    assert report.kept_step > 0
    (seen_before, before), (seen, after) = distances(plain), distances(done)
    assert report.distance_before == pytest.approx(before, rel=1e-3)
    assert report.distance_after == pytest.approx(after, rel=1e-3)
    assert report.distance_after < report.distance_before
    assert seen < seen_before
    assert done.report.drift_trained == done.drift_trained.relative_norm
    assert done.report.drift_behind < done.report.drift_quantized == plain.report.drift_quantized
    for name, weight in plain.layers.items():
        assert not torch.equal(done.layers[name].dequantize(), weight.dequantize())
    for weight in done.layers.values():
        assert torch.equal(weight.scales, weight.scales.half().float())
        assert weight.codes.max() <= 3
        if levels:
            used = weight.codes.unflatten(1, (-1, 16)).int() - weight.zeros.int()[:, :, None]
            assert set(used.unique().tolist()) <= {-1, 0, 1}


def test_what_is_passed_on_is_what_the_stored_block_computes(tiny_folders, seeded):
    walk, streams = given(tiny_folders["llama"], seeded)
    done = quantized(walk, streams, TRAINING, tweak=True)
    made = quantized_copy(walk.load(0), done.layers, done.norms, torch.float16)
    assert torch.equal(done.streams.x_q, run_stream(made, streams.x_q, walk.runner(0)))
    assert torch.equal(done.streams.x_f, run_stream(walk.load(0), streams.x_f, walk.runner(0)))


def test_a_training_that_came_no_nearer_leaves_the_block_as_it_was(tiny_folders, seeded):
    walk, streams = given(tiny_folders["llama"], seeded)
    plain = quantized(walk, streams, BlockTrainingConfig(), tweak=True)
    wild = BlockTrainingConfig(enabled=True, steps=3, batch=1, lr=30.0, scale_lr=0.9, clip=1e6)
    done = quantized(walk, streams, wild, tweak=True)
    assert not done.report.training.accepted
    assert done.report.training.kept_step == 0
    assert done.report.training.distance_after > done.report.training.distance_before
    assert "training undone" in done.report.notes()[-1]
    assert torch.equal(done.streams.x_q, plain.streams.x_q)
    assert done.norms.keys() == plain.norms.keys()
    for name, weight in plain.layers.items():
        assert torch.equal(done.layers[name].dequantize(), weight.dequantize())


def test_equal_seeds_give_equal_blocks_and_others_do_not(tiny_folders, seeded):
    walk, streams = given(tiny_folders["llama"], seeded)
    one, same, other = (quantized(walk, streams, TRAINING, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.streams.x_q, same.streams.x_q)
    assert not torch.equal(one.streams.x_q, other.streams.x_q)


def test_in_half_precision_the_training_is_in_float32(tiny_folders, seeded):
    walk, streams = given(tiny_folders["llama"], seeded, torch.bfloat16)
    done = quantized(walk, streams, TRAINING)
    assert done.report.training.accepted
    assert done.streams.x_q.dtype == torch.bfloat16
    assert all(norm.dtype == torch.float32 for norm in done.norms.values())


def test_the_rates_and_steps_are_those_of_a_fine_tuning():
    values = {"steps": 7, "batch": 3, "lr": 0.1, "scale_lr": 0.2, "clip": 0.3}
    made = BlockTrainingConfig(enabled=True, **values).as_finetune()
    assert made.block_steps == values.pop("steps")
    assert made.model_dump(include=set(values)) == values
