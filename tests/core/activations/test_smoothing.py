"""Smoothing moves outliers into weights, only where that leaves the function as it was."""

import pytest
import torch
import transformers as hf

from normtweak_core.activations.places import smoothing_places
from normtweak_core.activations.rounding import rounded_tokens
from normtweak_core.activations.smoothing import smoothed
from normtweak_core.distributed.ranks import ALONE
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.model.structure import find_linears, linear_weight
from normtweak_core.quantization.block import quantize_block
from normtweak_core.quantization.config import QuantizationConfig, SmoothingConfig
from normtweak_core.quantization.linears import solve
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.storage import stream_hashes
from normtweak_core.quantization.streams import Streams
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.tweak.config import NormTweakConfig
from tests.core.model.families import build, save, tokens

OF_A_LLAMA = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.v_proj": ("self_attn.o_proj",),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.up_proj": ("mlp.down_proj",),
}
BETWEEN = {"self_attn.v_proj": ("self_attn.o_proj",), "mlp.up_proj": ("mlp.down_proj",)}
PLACES = {
    "llama": OF_A_LLAMA,
    "qwen2": OF_A_LLAMA,  # biases, of v too
    "gemma": OF_A_LLAMA,  # gains of 1 + w
    # Norms behind attention and MLP as well, whose outputs no linear reads.
    "gemma2": BETWEEN
    | {
        "input_layernorm": OF_A_LLAMA["input_layernorm"],
        "pre_feedforward_layernorm": OF_A_LLAMA["post_attention_layernorm"],
    },
    # Rows of v lie among those of q and k; GELU passes no factor.
    "gpt_neox": {
        "input_layernorm": ("attention.query_key_value",),
        "post_attention_layernorm": ("mlp.dense_h_to_4h",),
    },
    # One norm for attention and MLP.
    "phi": {
        "input_layernorm": (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1",
        ),
        "self_attn.v_proj": ("self_attn.dense",),
    },
    "olmo": BETWEEN,  # norms without weights
}  # fmt: skip


def walk_of(folder):
    return BlockWalk(StreamedModel(folder, torch.float32, "cpu"), tokens(16, 12))


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    made = {}

    def walk(family):
        if family not in made:
            made[family] = walk_of(save(family, tmp_path_factory.mktemp(family)))
        return made[family]

    return walk


@pytest.mark.parametrize("family", PLACES)
def test_places_are_where_powers_of_two_change_no_bit(family, walks, seeded):
    walk = walks(family)
    block, run, x = walk.load(1), walk.runner(1), walk.start().x_q
    places = smoothing_places(block, run, x[:1])
    assert {place.source: place.linears for place in places} == PLACES[family]
    powers = torch.exp2(torch.randint(-3, 4, (512,), generator=seeded()).float())
    trial = walk.load(1)
    for place in places:
        count = len(next(trial.get_submodule(place.source).parameters()))
        place.divide(trial, powers[:count])
    wanted, found = run(block, x), run(trial, x)
    if family in ("gemma", "gemma2"):  # (1 + w) / 2 - 1 is rounded
        assert torch.allclose(found, wanted, atol=1e-5 * wanted.abs().max())
    else:
        assert torch.equal(found, wanted)
    for name, linear in find_linears(trial).items():
        moved = name in {one for place in places for one in place.linears}
        same = torch.equal(linear_weight(linear), linear_weight(find_linears(block)[name]))
        assert same != (moved or name in PLACES[family])


def test_heads_that_share_a_value_share_its_factor(walks):
    walk = walks("llama")
    (place,) = [
        one
        for one in smoothing_places(walk.load(0), walk.runner(0), walk.start().x_q[:1])
        if one.source == "self_attn.v_proj"
    ]
    heads = [0, 0, 1, 1]  # of keys and values, by head of queries
    assert place.channels.tolist() == [8 * head + i for head in heads for i in range(8)]


def test_a_norm_that_the_residual_reads_too_is_no_place(tmp_path, walks):
    config = hf.BloomConfig(
        vocab_size=96,
        hidden_size=32,
        n_layer=2,
        n_head=4,
        apply_residual_connection_post_layernorm=True,
    )
    torch.manual_seed(0)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    walk = walk_of(tmp_path)
    assert smoothing_places(walk.load(0), walk.runner(0), walk.start().x_q[:1]) == []
    usual = walks("bloom")
    found = smoothing_places(usual.load(0), usual.runner(0), usual.start().x_q[:1])
    assert [place.source for place in found] == ["input_layernorm", "post_attention_layernorm"]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_factors_are_those_of_the_paper_and_the_function_stays(family, alpha, walks):
    walk = walks(family)
    block, run, x = walk.load(1), walk.runner(1), walk.start().x_q
    inputs = {}
    for name, linear in find_linears(block).items():
        linear.register_forward_pre_hook(lambda _, a, name=name: inputs.update({name: a[0]}))
    wanted = run(block, x)
    run(block, x[:14])  # those that train
    done = smoothed(walk.load(1), x, run, SmoothingConfig(alpha=alpha), torch.float16, ALONE)
    found = run(done.block, x)
    assert torch.allclose(found, wanted, atol=1e-3 * wanted.abs().max())  # biases are halves
    for names in (OF_A_LLAMA["input_layernorm"], OF_A_LLAMA["post_attention_layernorm"]):
        peak = inputs[names[0]].abs().amax(dim=(0, 1))
        heaviest = torch.stack([block.get_submodule(n).weight.abs().amax(0) for n in names]).amax(0)
        s = peak**alpha / heaviest ** (1 - alpha)
        for name in names:
            assert torch.allclose(done.divisors[name], s, rtol=1e-5)
    s = done.divisors["mlp.gate_proj"]
    assert torch.allclose(
        done.block.mlp.gate_proj.weight, block.mlp.gate_proj.weight * s, rtol=1e-6
    )
    gain = block.post_attention_layernorm.weight / s
    assert torch.allclose(done.changed["post_attention_layernorm.weight"], gain, rtol=1e-6)
    biases = {"self_attn.v_proj.bias"} if family == "qwen2" else set()
    norms = {"input_layernorm.weight", "post_attention_layernorm.weight"}
    assert done.changed.keys() == norms | biases
    assert torch.equal(linear_weight(walk.load(1).mlp.up_proj), block.mlp.up_proj.weight)


def test_channels_that_are_never_read_or_weigh_nothing_stay(walks):
    walk = walks("llama")
    block, run, x = walk.load(0), walk.runner(0), walk.start().x_q
    with torch.no_grad():
        block.input_layernorm.weight[3] = 0
        for name in OF_A_LLAMA["input_layernorm"]:
            block.get_submodule(name).weight[:, 5] = 0
    done = smoothed(block, x, run, SmoothingConfig(), torch.float16, ALONE)
    s = done.divisors["self_attn.q_proj"]
    assert s[[3, 5]].tolist() == [1.0, 1.0]
    assert s.isfinite().all()
    assert (s > 0).all()


TWEAK = NormTweakConfig(lr=1e-2, rollback=False)
OFF = NormTweakConfig(enabled=False)


def run_all(walk, tweak, **quantization):
    """Return the blocks and the hashes of what is behind each."""
    settings = {"bits": 4, "group_size": 16, "symmetric": True, "activation_bits": 8}
    config = QuantizationConfig(**settings | {"exponents": [3.0], "sweeps": 0} | quantization)
    streams, blocks, behind = walk.start(), [], []
    for index in range(walk.num_blocks):
        plan = BlockPlan(index, walk.num_blocks, config, tweak, torch.float16)
        done = quantize_block(walk.load(index), streams, walk.runner(index), plan)
        streams = Streams(done.streams.x_f.clone(), done.streams.x_q.clone())  # as it overwrites
        blocks.append(done)
        behind.append(stream_hashes(streams))
    return blocks, behind


@pytest.mark.parametrize("tweak", [TWEAK, OFF], ids=["tweaked", "not tweaked"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "gemma"])
def test_a_finished_block_can_be_made_again_and_the_float_stream_stays(family, tweak, walks):
    walk = walks(family)
    blocks, behind = run_all(walk, tweak)
    _, plain = run_all(walk, OFF, activation_bits=None)
    assert [x_f for x_f, _ in behind] == [x_f for x_f, _ in plain]
    streams = walk.start()
    for index, done in enumerate(blocks):
        streams = walk.replay(index, streams, done.layers, done.norms, torch.float16)
        assert stream_hashes(streams) == behind[index]


def test_statistics_see_rounded_and_smoothed_inputs(walks, monkeypatch):
    walk, seen = walks("llama"), []
    real = solve.corrected_weight

    def look(W, H, WC, *rest):
        seen.append((H, WC))
        return real(W, H, WC, *rest)

    monkeypatch.setattr(solve, "corrected_weight", look)
    run_all(walk, OFF)
    (H, WC), start, run = seen[0], walk.start(), walk.runner(0)
    done = smoothed(walk.load(0), start.x_q, run, SmoothingConfig(), torch.float16, ALONE)
    names = OF_A_LLAMA["input_layernorm"]
    weights = torch.cat([done.block.get_submodule(name).weight for name in names]).double()
    x, norm = start.x_f[:14], done.block.input_layernorm
    wanted = walk.load(0).input_layernorm(x) / done.divisors[names[0]]
    norm.weight.copy_(norm.weight.half())
    read = rounded_tokens(norm(x)).flatten(0, 1).double()
    error = wanted.flatten(0, 1).double() - read
    assert torch.allclose(H.double(), 2 / len(read) * read.T @ read, rtol=1e-5, atol=1e-5)
    cross = 2 / len(read) * weights @ error.T @ read
    assert (WC.double() - cross).norm() < 1e-4 * cross.norm()


def test_smoothing_helps_where_activations_have_outliers(tmp_path):
    """A few channels of the first norm are a hundred times larger, and the weights so much less."""
    model = build("llama")
    with torch.no_grad():
        for block in model.model.layers:
            block.input_layernorm.weight[[3, 17]] *= 100
            block.post_attention_layernorm.weight[[5, 9]] *= 100
            for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                block.get_submodule(name).weight[:, [3, 17]] /= 100
            for name in ("mlp.gate_proj", "mlp.up_proj"):
                block.get_submodule(name).weight[:, [5, 9]] /= 100
    model.save_pretrained(tmp_path)
    walk = walk_of(tmp_path)
    drifts = [
        run_all(walk, OFF, bits=8, smoothing=smoothing)[0][-1].report.drift_quantized
        for smoothing in ({"enabled": False}, {"alpha": 0.5})
    ]
    assert drifts[1] < 0.2 * drifts[0]
