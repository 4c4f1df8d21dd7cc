"""Each expert of a mixture is quantized from the tokens routed to it, or says otherwise."""

import copy
import weakref

import pytest
import torch
from torch.nn.functional import silu

from normtweak_core.experts.stacked import mixture_of
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.model.structure import find_linears, linear_weight, set_linear_weight
from normtweak_core.quantization.block import quantize_block
from normtweak_core.quantization.config import ExpertsConfig, QuantizationConfig
from normtweak_core.quantization.gptq import round_to_nearest
from normtweak_core.quantization.grid import GridSpec
from normtweak_core.quantization.linears.experts import RoutedInputs, expert_statistics
from normtweak_core.quantization.linears.passes import FloatPasses, QuantizedPasses, Stop
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.storage import load_block, quantized_copy, save_block
from normtweak_core.quantization.streams import Share, Streams, micro_batches
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.tweak.config import NormTweakConfig
from tests.core.model.families import save, tokens

MIXTURE, INDEX, EXPERTS = "mlp.experts", 1, 4
SYMMETRIC = QuantizationConfig(bits=4, group_size=16, symmetric=True)


@pytest.fixture(scope="module", params=["qwen3_moe", "mixtral"])
def walk(request, tmp_path_factory):
    folder = save(request.param, tmp_path_factory.mktemp("mixture"))
    return BlockWalk(StreamedModel(folder, torch.float32, "cpu"), tokens(8, 12))


@pytest.fixture
def streams(walk, seeded):
    start = walk.start()
    noise = torch.randn(start.x_f.shape, generator=seeded(1))
    return Streams(start.x_f, start.x_f + 0.3 * noise)


@pytest.fixture
def pair(walk, seeded):
    """A float block, and one whose linears before the experts are others."""
    block = walk.load(INDEX)
    quantized = copy.deepcopy(block)
    for name, linear in find_linears(quantized).items():
        if name.startswith("self_attn"):
            noise = torch.randn(linear.weight.shape, generator=seeded(2))
            set_linear_weight(linear, linear.weight + 0.05 * noise)
    return block, quantized


def plan(quantization, tweak=False):
    return BlockPlan(INDEX, 3, quantization, NormTweakConfig(enabled=tweak), torch.float32)


def rounding(config):
    propagation = config.propagation.model_copy(update={"alpha": 0})
    return config.model_copy(update={"method": "rtn", "propagation": propagation})


def copied(streams):
    """The same streams, which a block overwrites."""
    return Streams(streams.x_f.clone(), streams.x_q.clone())


def inputs_of(block, quantized, streams, walk, held=99):
    """What arrives at the mixture in front of all windows."""
    own, run, stop = copied(streams), walk.runner(INDEX), [Stop(MIXTURE)]
    share = Share(micro_batches(own.x_q), [], [])
    with (
        FloatPasses(block, run, own.x_f, share, stop, held) as wanted,
        QuantizedPasses(quantized, run, own.x_q, share, stop, held) as ours,
    ):
        return RoutedInputs.of(ours.at(0), wanted.at(0))


def read_by_mixture(block, hidden, walk):
    """What a block's mixture reads, and where its router sends each token, in one whole pass."""
    seen = []
    handle = block.mlp.register_forward_hook(lambda _, args, output: seen.append(args[0]))
    with torch.no_grad():
        walk.runner(INDEX)(block, hidden)
        handle.remove()
        x = seen[0].flatten(0, 1)
        return x, block.mlp.gate(x)[2]


def slow(pairs):
    """H and C, token by token in float64."""
    H = C = 0
    for x, f in pairs:
        H = H + 2 / len(pairs) * torch.outer(x, x).double()
        C = C + 2 / len(pairs) * torch.outer(f - x, x).double()
    return H, C


def between(experts, expert, x):
    gate, up = experts.gate_up_proj[expert].chunk(2)
    return silu(x @ gate.T) * (x @ up.T)


def test_statistics_are_those_of_the_tokens_that_the_quantized_router_sends(
    walk, pair, streams, seeded
):
    block, quantized = pair
    x, chosen = read_by_mixture(quantized, streams.x_q, walk)
    f, elsewhere = read_by_mixture(block, streams.x_f, walk)
    inputs = inputs_of(block, quantized, streams, walk)
    both = [set(a) & set(b) for a, b in zip(chosen.tolist(), elsewhere.tolist(), strict=True)]
    assert inputs.alike == pytest.approx(sum(map(len, both)) / chosen.numel())
    assert 0 < inputs.alike < 1  # the streams do disagree here
    seen, linears = [], find_linears(quantized)
    for names, found, report in expert_statistics(
        block.mlp.experts, quantized.mlp.experts, MIXTURE, inputs, ExpertsConfig(min_tokens=0)
    ):
        expert = int(report.expert.rpartition(".")[2])
        routed = (chosen == expert).any(dim=1)
        ours, wanted = x[routed], f[routed]
        if names[0].endswith("down_proj"):
            ours = between(quantized.mlp.experts, expert, ours)
            wanted = between(block.mlp.experts, expert, wanted)
        H, C = slow(list(zip(ours, wanted, strict=True)))
        torch.testing.assert_close(found.hessian().double(), H, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.cross().double(), C, rtol=1e-3, atol=1e-5)
        assert report.tokens == found.num_tokens == int(routed.sum())
        assert not report.few
        for name in names:  # solved before the next ones are asked for
            noise = torch.randn(linear_weight(linears[name]).shape, generator=seeded(expert))
            set_linear_weight(linears[name], linear_weight(linears[name]) + 0.1 * noise)
        seen += names
    parts = ("gate_proj", "up_proj", "down_proj")
    assert seen == [f"{MIXTURE}.{expert}.{part}" for expert in range(EXPERTS) for part in parts]


def test_no_more_than_the_statistics_of_two_groups_are_in_memory(walk, pair, streams):
    block, quantized = pair
    inputs = inputs_of(block, quantized, streams, walk)
    seen, alive = [], []
    for _, found, _ in expert_statistics(
        block.mlp.experts, quantized.mlp.experts, MIXTURE, inputs, ExpertsConfig()
    ):
        seen.append(weakref.ref(found))
        alive.append(sum(one() is not None for one in seen))
    assert len(alive) == 2 * EXPERTS
    assert max(alive) <= 2  # those just yielded, and what the loop still holds


def test_ties_and_an_expert_without_tokens_leave_none_uncalibrated(walk, pair, streams):
    block, quantized = pair
    for one in pair:
        one.mlp.gate.weight.data.zero_()  # every score the same: some experts are never chosen
    x, chosen = read_by_mixture(quantized, streams.x_q, walk)
    inputs = inputs_of(block, quantized, streams, walk)
    assert torch.equal(inputs.chosen, chosen)
    assert inputs.alike == 1
    reports = {}
    for names, found, report in expert_statistics(
        block.mlp.experts, quantized.mlp.experts, MIXTURE, inputs, ExpertsConfig(min_tokens=0.1)
    ):
        reports[report.expert] = report
        if names[0].endswith("gate_proj") and report.tokens == 0:
            torch.testing.assert_close(found.hessian(), 2 * x.T @ x / len(x))
    counts = {name: report.tokens for name, report in reports.items()}
    assert sorted(counts.values()) == [0, 0, len(x), len(x)]
    for name, report in reports.items():
        assert report.statistics == ("routed tokens" if counts[name] else "all tokens")


def test_a_block_names_its_starved_experts_and_quantizes_every_one(walk, streams):
    block = walk.load(INDEX)
    block.mlp.gate.weight.data.zero_()
    done = quantize_block(block, copied(streams), walk.runner(INDEX), plan(SYMMETRIC))
    assert done.layers.keys() == find_linears(block).keys()
    assert done.report.left_float == []
    assert all(row.output_error is not None for row in done.report.layers)
    training = streams.num_training * streams.x_f.shape[1]
    assert sum(one.tokens for one in done.report.experts) == 2 * training
    starved = [one.expert for one in done.report.experts if one.tokens == 0]
    assert len(starved) == 2
    told = ", ".join(f"{name} (0)" for name in starved)
    assert done.report.notes()[0] == (
        f"block {INDEX}: experts with few tokens, statistics of all tokens: {told}"
    )
    assert done.report.problems() == []


def test_starved_experts_are_rounded_to_nearest_where_the_recipe_says_so(walk, streams):
    block = walk.load(INDEX)
    block.mlp.gate.weight.data.zero_()
    config = SYMMETRIC.model_copy(update={"experts": ExpertsConfig(few_tokens="none")})
    done = quantize_block(block, copied(streams), walk.runner(INDEX), plan(config))
    spec = GridSpec(4, True, True, torch.float32, "full")
    errors = {row.layer: row.output_error for row in done.report.layers}
    for one in done.report.experts:
        names = [f"{one.expert}.{part}" for part in ("gate_proj", "up_proj", "down_proj")]
        assert [errors[name] is None for name in names] == [one.tokens == 0] * 3
        for name in names if one.tokens == 0 else ():
            weight = linear_weight(find_linears(block)[name])
            rounded = round_to_nearest(weight, 16, spec).weight
            assert torch.equal(done.layers[name].codes, rounded.codes)
    assert "rounded to nearest: mlp.experts." in done.report.notes()[0]


def test_the_bare_rounding_asks_for_no_statistics(walk, streams):
    config = rounding(SYMMETRIC)
    block = walk.load(INDEX)
    done = quantize_block(block, copied(streams), walk.runner(INDEX), plan(config))
    assert done.layers.keys() == find_linears(block).keys()
    assert done.report.experts == []
    assert "experts" not in done.report.model_dump(mode="json")


def test_gptq_on_routed_tokens_is_closer_than_rounding_and_a_tweak_sees_the_routing(walk, streams):
    block, run = walk.load(INDEX), walk.runner(INDEX)
    config = QuantizationConfig(bits=3, group_size=16, symmetric=True)
    gptq = quantize_block(block, copied(streams), run, plan(config, tweak=True))
    rtn = quantize_block(block, copied(streams), run, plan(rounding(config)))
    assert gptq.report.drift_quantized < rtn.report.drift_quantized
    assert gptq.report.tweak.trained > 0
    if gptq.report.tweak.accepted:
        assert gptq.report.drift_tweaked != gptq.report.drift_quantized


def test_a_finished_block_is_read_back_as_it_was(walk, streams, tmp_path):
    block, run = walk.load(INDEX), walk.runner(INDEX)
    done = quantize_block(block, copied(streams), run, plan(SYMMETRIC))
    save_block(tmp_path / "block.safetensors", done.layers, done.norms)
    layers, norms = load_block(tmp_path / "block.safetensors", SYMMETRIC)
    again = quantized_copy(block, layers, norms, torch.float32)
    experts = find_linears(again)
    for name, weight in done.layers.items():
        assert torch.equal(linear_weight(experts[name]), weight.dequantize()), name
    assert not torch.equal(again.mlp.experts.down_proj, block.mlp.experts.down_proj)
    replayed = walk.replay(INDEX, copied(streams), layers, norms, torch.float32)
    assert torch.equal(replayed.x_q, done.streams.x_q)
    assert torch.equal(replayed.x_f, done.streams.x_f)


def test_what_arrives_is_the_same_whether_passes_wait_or_run_anew(walk, pair, streams):
    waited, anew = (inputs_of(*pair, streams, walk, held) for held in (99, 0))
    assert torch.equal(waited.x_q, anew.x_q)
    assert torch.equal(waited.x_f, anew.x_f)
    assert torch.equal(waited.chosen, anew.chosen)
    assert waited.alike == anew.alike


def test_without_propagation_nothing_is_asked_of_the_float_stream(walk, streams):
    propagation = SYMMETRIC.propagation.model_copy(update={"alpha": 0})
    config = SYMMETRIC.model_copy(update={"propagation": propagation})
    block = walk.load(INDEX)
    done = quantize_block(block, copied(streams), walk.runner(INDEX), plan(config))
    assert done.report.routed_alike is None
    assert done.layers.keys() == find_linears(block).keys()
    assert all(row.ridge == 0 for row in done.report.layers)
    assert len(done.report.experts) == EXPERTS


def test_mixtures_are_told_from_other_linears(pair):
    block, _ = pair
    assert mixture_of(block, "mlp.experts.3.down_proj") == MIXTURE
    assert mixture_of(block.mlp, "experts.3.down_proj") == "experts"
    assert mixture_of(block, "self_attn.q_proj") is None
