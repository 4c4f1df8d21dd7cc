"""Passes that wait in memory and passes that run anew bring the same to every stop."""

import pytest
import torch

from normtweak_core.errors import InputError
from normtweak_core.forecast.memory import solving_bytes
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.model.structure import find_linears
from normtweak_core.quantization.block import quantize_block
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.linears import groups as linears
from normtweak_core.quantization.linears import solve
from normtweak_core.quantization.linears.passes import FloatPasses, QuantizedPasses, Stop
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.streams import Share
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.tweak.config import NormTweakConfig

LLAMA = [Stop("self_attn.q_proj"), Stop("self_attn.o_proj"), Stop("mlp.down_proj", behind=True)]
SAMPLES, TRAINING = 16, 14
PARTS = [slice(i, min(i + 4, TRAINING)) for i in range(0, TRAINING, 4)]
SHARE = Share(PARTS, [1, 3, 5, 7], [slice(TRAINING, SAMPLES)])


@pytest.fixture
def walk(tiny_folders, seeded, monkeypatch):
    """Sixteen windows in micro-batches of four."""
    monkeypatch.setattr("normtweak_core.quantization.streams.TOKENS_PER_MICRO_BATCH", 4 * 24)
    ids = torch.randint(0, 96, (SAMPLES, 24), generator=seeded(3))
    return BlockWalk(StreamedModel(tiny_folders["llama"], torch.float32, "cpu"), ids)


@pytest.mark.parametrize("passes", [FloatPasses, QuantizedPasses])
@pytest.mark.parametrize("held", [0, 2, 9])
def test_a_stop_sees_what_the_linear_reads_and_gives(walk, passes, held):
    block, run = walk.load(0), walk.runner(0)
    stream = walk.start().x_f
    reads, gives = {}, {}
    for name, module in find_linears(block).items():
        module.register_forward_hook(
            lambda _, args, output, name=name: (
                reads.update({name: args[0].clone()}) or gives.update({name: output.clone()})
            )
        )
    with torch.no_grad():
        expected = []
        for start in range(0, TRAINING, 4):
            run(block, stream[start : min(start + 4, TRAINING)])
            expected.append([reads[LLAMA[0].layer], reads[LLAMA[1].layer], gives[LLAMA[2].layer]])
        output = torch.cat([run(block, stream[i : i + 1]) for i in range(SAMPLES)])
        with passes(block, run, stream, SHARE, LLAMA, held) as under_way:
            for index in range(len(LLAMA)):
                seen = [tensor.clone() for tensor in under_way.at(index)]
                assert len(seen) == 4
                for ours, wanted in zip(seen, expected, strict=True):
                    assert torch.equal(ours, wanted[index])
            assert under_way.finish() is stream
    assert torch.allclose(stream, output, atol=1e-6)


@pytest.mark.parametrize("held", [0, 9])
def test_a_pass_goes_on_with_the_weights_the_block_has_then(walk, held):
    block, run = walk.load(0), walk.runner(0)
    stream = walk.start().x_f
    with torch.no_grad(), QuantizedPasses(block, run, stream, SHARE, LLAMA, held) as under_way:
        list(under_way.at(0))
        block.self_attn.v_proj.weight.zero_()
        assert all(not tensor.any() for tensor in under_way.at(1))  # of values of zero


def test_what_a_block_changes_in_place_was_noted_before(walk):
    block, run = walk.load(0), walk.runner(0)
    block.mlp.down_proj.register_forward_hook(lambda _, args, output: output.mul_(2))
    block.mlp.register_forward_hook(lambda _, args, output: output.mul_(0))
    stops = [Stop("mlp.down_proj", behind=True)]
    with torch.no_grad():
        held, again = (
            list(under_way.at(0))
            for held in (9, 0)
            for under_way in [FloatPasses(block, run, walk.start().x_f, SHARE, stops, held)]
            for under_way in [under_way.__enter__()]
        )
    assert held[0].any()
    assert torch.equal(torch.cat(held), torch.cat(again))


@pytest.mark.parametrize("passes", [FloatPasses, QuantizedPasses])
@pytest.mark.parametrize("held", [0, 9])
def test_a_linear_that_some_windows_do_not_reach_is_an_error(walk, passes, held):
    block, run = walk.load(0), walk.runner(0)
    block.unused = torch.nn.Linear(32, 32)
    with (
        torch.no_grad(),
        pytest.raises(InputError, match="DecoderLayer did not run unused on some"),
        passes(block, run, walk.start().x_f, SHARE, [Stop("unused")], held) as under_way,
    ):
        list(under_way.at(0))


def test_a_linear_that_is_called_twice_counts_once(walk):
    block, run = walk.load(0), walk.runner(0)
    once = block.mlp.forward
    block.mlp.forward = lambda x: once(once(x))
    for held in (0, 9):
        stream = walk.start().x_f
        with torch.no_grad(), QuantizedPasses(block, run, stream, SHARE, LLAMA, held) as passes:
            assert [len(list(passes.at(index))) for index in range(3)] == [4, 4, 4]
            passes.finish()
    assert stream.isfinite().all()


@pytest.mark.parametrize("settings", [{}, {"method": "rtn"}, {"propagation": {"alpha": 0.0}}])
def test_how_many_wait_changes_no_bit(walk, monkeypatch, settings):
    config = QuantizationConfig(bits=3, group_size=16, **settings)
    plan = BlockPlan(0, 3, config, NormTweakConfig(lr=1e-2), torch.float16)
    results = []
    for held in (0, 2, 9):
        monkeypatch.setattr(solve, "held_micro_batches", lambda *_, held=held: held)
        results.append(quantize_block(walk.load(0), walk.start(), walk.runner(0), plan))
    for other in results[1:]:
        assert other.report == results[0].report
        assert torch.equal(other.streams.x_q, results[0].streams.x_q)
        assert torch.equal(other.streams.x_f, results[0].streams.x_f)
        for name, weight in results[0].layers.items():
            assert torch.equal(other.layers[name].codes, weight.codes)


def test_what_waits_follows_from_the_free_memory(walk, monkeypatch):
    block, streams = walk.load(0), walk.start()
    modules = find_linears(block)
    names = ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]
    groups = [linears.LinearGroup({name: modules[name]}) for name in names]
    inner, heads = modules["mlp.up_proj"].weight.shape[0], modules["self_attn.q_proj"].weight
    assert heads.shape == (32, 32)
    waiting = max(2 * 32 + 32 + 32, 2 * 32 + inner + inner)
    noted = 32 + 32 + 32 + (32 if groups[3].by_outputs else inner)
    needed = 4 * 24 * 4 * (waiting + noted)
    sizes = [tuple(modules[name].weight.shape) for name in names]
    for times, held in ((3.01, 3), (2.99, 2), (0.5, 0)):
        free = int(times * needed / linears.SUSPENDED_SHARE) + solving_bytes(sizes)
        monkeypatch.setattr(linears, "available_memory", lambda device, free=free: free)
        assert linears.held_micro_batches(groups, streams, True) == held


def test_the_cross_statistic_by_outputs_is_that_by_inputs(seeded):
    module = torch.nn.Linear(64, 24)
    x = torch.randn(3, 40, 64, generator=seeded(1))
    wanted = x + 0.1 * torch.randn(x.shape, generator=seeded(2))
    with torch.no_grad():
        group = linears.LinearGroup({"down": module})
        assert group.by_outputs
        H, WC = group.statistics(iter(x), iter(module(wanted)), [0, 3, 7])
        error = (wanted - x).flatten(0, 1).double()
        flat = x.flatten(0, 1).double()
    assert torch.allclose(H.double(), 2 * flat.T @ flat / 120, atol=1e-5)
    expected = module.weight.double() @ (2 * error.T @ flat / 120)
    assert torch.allclose(WC.double(), expected, atol=1e-6)
    assert not linears.LinearGroup({"down": module, "other": module}).by_outputs
    assert not linears.LinearGroup({"half": torch.nn.Linear(64, 24).half()}).by_outputs
    assert not linears.LinearGroup({"square": torch.nn.Linear(64, 33)}).by_outputs
