"""Surgery on tiny models of many families: the function is kept, and what is inserted is right."""

import pytest
import torch
from torch import nn

from normtweak_core.errors import InputError
from normtweak_core.model.structure import find_blocks, find_linears, find_norms
from normtweak_core.ternary.config import TernaryConfig
from normtweak_core.ternary.surgery import (
    NORMS,
    apply_surgery,
    plan_surgery,
    set_lambdas,
    trained_blocks,
    trained_linears,
)
from tests.core.model.families import FAMILIES, build, tokens

OPERABLE = [family for family in FAMILIES if family not in ("gpt", "gpt2")]  # Conv1D


def off_centre(model: nn.Module) -> nn.Module:
    """Give norms gains and biases that matter; a fresh model has ones and zeros."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for block in find_blocks(model).modules:
            for norm in find_norms(block).values():
                for parameter in norm.module.parameters():
                    noise = torch.rand(parameter.shape, generator=generator)
                    parameter.copy_(parameter + 0.4 * noise)
    return model


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits


@pytest.mark.parametrize("family", OPERABLE)
@pytest.mark.parametrize("changes", [{}, {"share_gains": False}, {"affine": False}], ids=str)
def test_with_lambda_zero_the_model_computes_what_it_did(family, changes):
    model, ids = off_centre(build(family)), tokens()
    before = logits(model, ids)
    plan = plan_surgery(model, ids)
    apply_surgery(model, plan, TernaryConfig(**changes))
    set_lambdas(model, [0.0] * len(plan.blocks), ramp_norm=True)
    after = logits(model, ids)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4 * before.abs().max().item())


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_where_a_block_norm_feeds_it_the_inserted_norm_changes_nothing(family):
    model, ids = off_centre(build(family)), tokens()
    plan = plan_surgery(model, ids)
    fed = [[group.norm is not None for group in block] for block in plan.blocks]
    assert all(block == [True, False, True, False] for block in fed)
    inputs = {}
    for block in find_blocks(model).modules[:1]:
        for name, linear in find_linears(block).items():
            linear.register_forward_hook(lambda m, a, out, name=name: inputs.update({name: out}))
    logits(model, ids)
    first = [name for group in plan.blocks[0] if group.norm for name in group.linears]
    expected = {name: inputs[name] for name in first[: len(plan.blocks[0][0].linears)]}
    twin = off_centre(build(family))
    apply_surgery(twin, plan, TernaryConfig())
    set_lambdas(twin, [0.0] * len(plan.blocks), ramp_norm=False)
    for name, linear in trained_linears(trained_blocks(twin)[0]).items():
        linear.register_forward_hook(lambda m, a, out, name=name: inputs.update({name: out}))
    logits(twin, ids)
    for name, output in expected.items():
        # What is left is eps: the block norm's output has a mean square of just under one.
        largest = output.abs().max().item()
        torch.testing.assert_close(inputs[name], output, rtol=0, atol=5e-4 * largest)


def test_block_norms_are_left_with_gain_one_and_bias_zero():
    for family in ("llama", "gpt_neox", "gemma2"):
        model = off_centre(build(family))
        plan = plan_surgery(model, tokens())
        apply_surgery(model, plan, TernaryConfig())
        moved = {group.norm for group in plan.blocks[0] if group.norm}
        norms = find_norms(trained_blocks(model)[0])
        for name in moved:
            gain = 0.0 if norms[name].kind.endswith("plus_one") else 1.0
            assert (norms[name].module.weight == gain).all()
            bias = getattr(norms[name].module, "bias", None)
            assert bias is None or not bias.any()


def test_output_projections_start_at_the_calibrated_root_mean_square():
    model, ids = build("llama"), tokens()
    seen = {}
    block = find_blocks(model).modules[0]
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        module = block.get_submodule(name)
        module.register_forward_pre_hook(lambda m, a, name=name: seen.update({name: a[0]}))
    plan = plan_surgery(model, ids)
    apply_surgery(model, plan, TernaryConfig())
    for name, tensor in seen.items():
        level = tensor.square().mean(dim=-1).sqrt().mean().item()
        gain = trained_linears(trained_blocks(model)[0])[name].full_gain()
        assert gain.tolist() == pytest.approx([level] * len(gain), rel=1e-5)


def test_gains_are_shared_by_the_linears_of_one_input_or_their_own():
    for share in (True, False):
        model = build("llama")
        apply_surgery(model, plan_surgery(model, tokens()), TernaryConfig(share_gains=share))
        block = trained_blocks(model)[0]
        linears = trained_linears(block)
        q, k = (linears[f"self_attn.{name}_proj"] for name in "qk")
        assert q.shared is k.shared
        assert (q.gain is None) == share
        assert len(getattr(block, NORMS)) == 4
        parameters = dict(block.named_parameters())
        assert len({id(p) for p in parameters.values()}) == len(parameters)


@pytest.mark.parametrize("affine", [True, False])
def test_all_is_trained_but_norms_whose_gain_has_moved_and_embeddings_stay_tied(affine):
    model = build("llama")
    apply_surgery(model, plan_surgery(model, tokens()), TernaryConfig(affine=affine))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    moved = ("input_layernorm.weight", "post_attention_layernorm.weight")
    blocks = range(len(trained_blocks(model)))
    expected = {f"model.layers.{i}.{name}" for i in blocks for name in moved}
    assert frozen == (expected if affine else set())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    tied = model.config.tie_word_embeddings
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_conv1d_is_refused():
    with pytest.raises(InputError, match=r"needs nn.Linear layers; GPT2Block.attn.c_attn is a Con"):
        plan_surgery(build("gpt2"), tokens())
