"""What a linear's output is added to: found in every kind of block, the same in both streams."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
)

from normtweak_core.model.streaming import StreamedModel
from normtweak_core.model.structure import find_linears
from normtweak_core.quantization.config import PropagationConfig
from normtweak_core.quantization.linears.groups import LinearGroup, linear_groups_of
from normtweak_core.quantization.linears.passes import FloatPasses, QuantizedPasses, Stop
from normtweak_core.quantization.linears.residual import residuals
from normtweak_core.quantization.streams import Share
from normtweak_core.quantization.walk import BlockWalk

SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = SMALL | {"intermediate_size": 64, "pad_token_id": 0}
LLAMA = ["self_attn.o_proj", "mlp.down_proj"]
KINDS = {
    "one after the other": (LlamaConfig(**WIDE), LLAMA),
    "of 0.3 times each": (GraniteConfig(**WIDE, residual_multiplier=0.3), LLAMA),
    "beside experts": (
        MixtralConfig(**WIDE, num_key_value_heads=2, num_local_experts=4), LLAMA[:1],
    ),
    "both at once": (GPTNeoXConfig(**WIDE), ["attention.dense", "mlp.dense_4h_to_h"]),
    "both at once, one norm": (CohereConfig(**WIDE), LLAMA),
    "both at once, added in place": (
        FalconConfig(**SMALL, new_decoder_architecture=False, parallel_attn=True),
        ["self_attention.dense", "mlp.dense_4h_to_h"],
    ),
    "both at once, with biases": (PhiConfig(**WIDE), ["self_attn.dense", "mlp.fc2"]),
    "GPT-J's": (
        GPTJConfig(vocab_size=96, n_embd=32, n_layer=2, n_head=4, rotary_dim=4),
        ["attn.out_proj", "mlp.fc_out"],
    ),
    "Conv1D": (GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4),
               ["attn.c_proj", "mlp.c_proj"]),
    "BLOOM's": (BloomConfig(**SMALL, n_head=4), ["self_attention.dense", "mlp.dense_4h_to_h"]),
    "to what a norm gives": (
        BloomConfig(**SMALL, n_head=4, apply_residual_connection_post_layernorm=True),
        ["self_attention.dense", "mlp.dense_4h_to_h"],
    ),
    "OPT's": (
        OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32), ["self_attn.out_proj", "fc2"],
    ),
    "none, outputs are normalized": (Gemma2Config(**WIDE, head_dim=8), []),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random model of each kind."""
    found = {}
    for number, (kind, (config, _)) in enumerate(KINDS.items()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            for parameter in model.parameters():
                parameter.data += 0.2 * torch.randn(parameter.shape)
        folder = tmp_path_factory.mktemp("kind") / "model"
        model.save_pretrained(folder)
        found[kind] = folder
    return found


@pytest.fixture
def walk_of(folders):
    """Return the walk of a kind, in front of its first block."""
    ids = torch.randint(0, 96, (6, 12), generator=torch.Generator().manual_seed(0))

    def walk(kind, dtype=torch.float32):
        return BlockWalk(StreamedModel(folders[kind], dtype, "cpu"), ids)

    return walk


def silenced(block, run, hidden, names):
    """Return the block's output where the outputs of some linears are zero."""
    handles = [
        block.get_submodule(name).register_forward_hook(lambda _, args, out: torch.zeros_like(out))
        for name in names
    ]
    try:
        return run(block, hidden)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_rest_is_what_is_left_of_the_stream_without_the_linear(walk_of, kind, dtype):
    walk, expected = walk_of(kind, dtype), KINDS[kind][1]
    block, run = walk.load(1), walk.runner(1)
    hidden = walk.start().x_f
    found = residuals(block, run, hidden[:1], find_linears(block))
    assert list(found) == expected
    called = [*expected, *(["mlp"] if kind == "beside experts" else [])]
    share = Share([slice(0, 3), slice(3, 5)], [0, 1], [slice(5, 6)])
    for place, (name, residual) in enumerate(found.items()):
        if kind == "to what a norm gives" and place == 0:
            continue  # the stream that is left goes through another norm
        with torch.no_grad():  # what writes to it later says nothing either
            wanted = silenced(block, run, hidden[:5], called[called.index(name) :])
            for passes, held in ((FloatPasses, 0), (FloatPasses, 2), (QuantizedPasses, 2)):
                stops = [Stop(name, passes is FloatPasses, residual)]
                with passes(block, run, hidden.clone(), share, stops, held) as under_way:
                    seen = torch.cat([rest for _, rest in under_way.at(0)])
                    under_way.finish()
                near = 1e-5 if dtype == torch.float32 else 3e-2
                error = (seen.view_as(wanted).float() * residual.times - wanted.float()).norm()
                assert error <= near * wanted.float().norm()


def test_outputs_are_in_the_sum_as_often_as_the_model_says(walk_of):
    for kind, times in (("one after the other", 1.0), ("of 0.3 times each", 0.3)):
        walk = walk_of(kind)
        block, hidden = walk.load(0), walk.start().x_f[:1]
        found = residuals(block, walk.runner(0), hidden, find_linears(block))
        assert [one.times for one in found.values()] == [times, times]


@pytest.mark.parametrize("by_outputs", [True, False])
def test_the_target_holds_a_share_of_the_error_of_the_stream(walk_of, seeded, by_outputs):
    walk = walk_of("one after the other")
    block, run = walk.load(1), walk.runner(1)
    x_f = walk.start().x_f
    x_q = x_f + 0.3 * torch.randn(x_f.shape, generator=seeded(1))
    groups = linear_groups_of(block, run, x_f[:1], None, PropagationConfig(residual=0.25))
    assert [group.residual is not None for group in groups] == [False, True, False, True]
    group = groups[3 if by_outputs else 1]
    assert group.by_outputs is by_outputs
    share = Share([slice(0, 4)], [0], [])
    with (
        torch.no_grad(),
        FloatPasses(block, run, x_f.clone(), share, [group.wanted_stop], 1) as wanted,
        QuantizedPasses(block, run, x_q.clone(), share, [group.stop], 1) as ours,
    ):
        _, WC = group.statistics(ours.at(0), wanted.at(0), [0])
        ours.finish()
    reads = {}
    handle = block.get_submodule(group.first).register_forward_pre_hook(
        lambda _, args: reads.update(x=args[0].flatten(0, 1).double())
    )
    sides = {}
    for side, stream in (("f", x_f), ("q", x_q)):
        with torch.no_grad():
            without = silenced(block, run, stream[:4], LLAMA[1:] if by_outputs else LLAMA)
            run(block, stream[:4])
        sides[side] = without.flatten(0, 1).double(), reads["x"]
    handle.remove()
    (rest_f, read_f), (rest_q, read_q) = sides["f"], sides["q"]
    error = (read_f - read_q) @ group.weights[0].double().T + 0.25 * (rest_f - rest_q)
    assert torch.allclose(WC.double(), 2 / len(error) * error.T @ read_q, atol=1e-5)


def test_nothing_is_looked_for_where_nothing_is_corrected(walk_of):
    walk = walk_of("one after the other")
    for propagation in (PropagationConfig(alpha=0.0), PropagationConfig(residual=0.0)):
        made = linear_groups_of(
            walk.load(0), walk.runner(0), walk.start().x_f[:1], None, propagation
        )
        assert [one.residual for one in made] == [None] * 4
    assert LinearGroup({}).residual is None
