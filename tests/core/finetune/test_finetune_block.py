"""Training one block on its float output: it comes nearer, or it stays as it was."""

import math

import pytest
import torch

from normtweak_core.errors import NonFiniteError
from normtweak_core.finetune.block import finetune_block
from normtweak_core.finetune.config import FinetuneConfig
from normtweak_core.finetune.model import grid_linears, put_on_grids, trained_state
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.quantization.streams import Streams, run_stream
from normtweak_core.quantization.walk import BlockWalk
from tests.tiny_exports import quantize_all, save_tiny_model, tiny_config

SETTINGS = {"block_steps": 60, "batch": 4, "lr": 3e-2, "scale_lr": 3e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("block") / "model", tiny_config("llama"))


@pytest.fixture
def walk(folder, seeded):
    ids = torch.randint(0, 256, (24, 16), generator=seeded(3))
    return BlockWalk(StreamedModel(folder, torch.float32, "cpu"), ids)


def on_grids(walk, folder, config, bits):
    prefix = "model.layers.0."
    layers = quantize_all(folder, bits, 32, False)
    inside = {n.removeprefix(prefix): w for n, w in layers.items() if n.startswith(prefix)}
    return put_on_grids(walk.load(0), inside, {}, config, "full", torch.float16, 0, prefix)


def trained(walk, folder, streams=None, bits=2, **settings):
    config = FinetuneConfig(**SETTINGS | settings)
    block = on_grids(walk, folder, config, bits)
    start = trained_state(block)
    done = finetune_block(
        walk.load(0), block, streams or walk.start(), walk.runner(0), config, 0, 0
    )
    return done, block, start


def test_a_block_comes_nearer_to_its_float_output(walk, folder):
    done, block, start = trained(walk, folder)
    report = done.report
    assert report.accepted
    assert report.distance_after < 0.95 * report.distance_before
    assert not torch.equal(done.state["mlp.up_proj.weight"], start["mlp.up_proj.weight"])
    # The streams are what both blocks say, the trained one as it is kept.
    x = walk.start()
    assert torch.equal(done.streams.x_f, run_stream(walk.load(0), x.x_f, walk.runner(0)))
    assert torch.equal(done.streams.x_q, run_stream(block, x.x_q, walk.runner(0)))
    held_out = slice(x.num_training, None)
    gap = (done.streams.x_q - done.streams.x_f)[held_out].norm(dim=-1)
    relative = gap / done.streams.x_f[held_out].norm(dim=-1)
    assert report.distance_after == pytest.approx(relative.square().mean().sqrt().item(), rel=1e-5)


def test_equal_seeds_give_equal_bytes(walk, folder):
    one, two = (trained(walk, folder)[0] for _ in range(2))
    assert all(torch.equal(value, two.state[name]) for name, value in one.state.items())


def test_a_block_that_moved_away_is_put_back(walk, folder):
    done, block, start = trained(walk, folder, bits=4, lr=5.0, block_steps=5)
    assert not done.report.accepted
    assert done.report.distance_after > done.report.distance_before
    assert all(torch.equal(value, start[name]) for name, value in done.state.items())
    layers = quantize_all(folder, 4, 32, False)
    for name, linear in grid_linears(block).items():
        assert torch.equal(linear.quantized().codes, layers[f"model.layers.0.{name}"].codes)


def test_a_loss_that_is_not_finite_ends_it_with_a_sentence(walk, folder):
    start = walk.start()
    broken = Streams(start.x_f, torch.full_like(start.x_q, math.nan))
    with pytest.raises(NonFiniteError, match=r"block 0 must be finite; found nan at step 0: lower"):
        trained(walk, folder, broken)
