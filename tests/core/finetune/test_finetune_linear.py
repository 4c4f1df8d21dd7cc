"""A linear that learns on its grid: it starts as the export's and leaves but codes behind."""

import pytest
import torch
from torch import nn

from normtweak_core.finetune.config import FinetuneConfig, LoraConfig
from normtweak_core.finetune.finished import FinishedGrids, other_tensors
from normtweak_core.finetune.linear import GridLinear, LoraGridLinear
from normtweak_core.finetune.model import (
    grid_linears,
    load_trained,
    peak_rates,
    put_on_grids,
    trained_state,
)
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.quantization.gptq import round_to_nearest
from normtweak_core.quantization.grid import GridSpec
from tests.tiny_exports import quantize_all, save_tiny_model, tiny_config

SPEC = GridSpec(2, False, True, torch.float16)


@pytest.fixture
def linear(seeded):
    made = nn.Linear(16, 6)
    made.weight.data = torch.randn(6, 16, generator=seeded(1))
    made.bias.data = torch.randn(6, generator=seeded(2))
    return made


@pytest.fixture
def quantized(linear):
    return round_to_nearest(linear.weight.detach(), 8, SPEC).weight


def both(linear, quantized, seeded):
    yield GridLinear(linear, quantized, "full", torch.float16)
    yield LoraGridLinear(linear, quantized, "full", torch.float16, 3, seeded(4))


def test_both_kinds_start_at_the_export(linear, quantized, seeded):
    x = torch.randn(5, 16, generator=seeded(3))
    wanted = nn.functional.linear(x, quantized.dequantize(), linear.bias)
    for made in both(linear, quantized, seeded):
        assert torch.equal(made(x), wanted)
        assert torch.equal(made.quantized().codes, quantized.codes)


def test_the_grid_goes_where_the_weights_go(linear, quantized, seeded):
    for made in both(linear, quantized, seeded):
        levels = made.grid.levels
        made.to("meta")
        grid = made.grid
        assert {t.device.type for t in (grid.scales, grid.zeros, grid.low, grid.high)} == {"meta"}
        assert (made.factors.device.type, grid.levels) == ("meta", levels)


def test_training_lowers_the_loss_and_the_codes_say_all_of_it(linear, quantized, seeded):
    x = torch.randn(64, 16, generator=seeded(5))
    elsewhere = linear.weight + 0.7 * torch.randn(6, 16, generator=seeded(6))
    target = nn.functional.linear(x, elsewhere, linear.bias).detach()
    for made in both(linear, quantized, seeded):
        before = (made(x) - target).square().mean().item()
        optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad])
        for step in range(150):  # the rate has to fall: codes on an edge would go on flipping
            optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / 150)
            optimizer.zero_grad()
            (made(x) - target).square().mean().backward()
            optimizer.step()
        after = (made(x) - target).square().mean().item()
        assert after < 0.9 * before
        exported = made.quantized()
        assert not torch.equal(exported.codes, quantized.codes)
        rebuilt = nn.functional.linear(x, exported.dequantize(), linear.bias)
        assert torch.equal(rebuilt, made(x).detach())


def test_the_update_has_its_rank_and_the_base_stays(linear, quantized, seeded):
    made = LoraGridLinear(linear, quantized, "full", torch.float16, 3, seeded(4))
    base = made.weight.detach().clone()
    made(torch.randn(4, 16, generator=seeded(6))).square().sum().backward()
    assert made.weight.grad is None
    assert made.lora_b.grad.abs().sum() > 0
    made.lora_b.data = torch.randn(6, 3, generator=seeded(7))
    update = (made.latent().detach() - base) * quantized.scales.repeat_interleave(8, dim=1)
    assert torch.linalg.matrix_rank(update, atol=1e-4) == 3
    assert torch.allclose(update, made.lora_b @ made.lora_a, atol=1e-5)
    assert torch.equal(made.weight, base)


@pytest.fixture
def model(tmp_path):
    folder = save_tiny_model(tmp_path / "model", tiny_config("llama"))
    return load_causal_lm(folder, torch.float32, "cpu"), folder


def test_a_model_on_grids_computes_what_its_layers_say_and_trains_what_it_should(model, seeded):
    whole, folder = model
    layers = quantize_all(folder, 2, 32, False)
    dense = load_causal_lm(folder, torch.float32, "cpu")
    with torch.no_grad():
        for name, weight in layers.items():
            dense.get_submodule(name).weight.copy_(weight.dequantize())
    put_on_grids(whole, layers, {}, FinetuneConfig(), "full", torch.float16, 0)
    ids = torch.randint(0, 256, (2, 12), generator=seeded(1))
    assert torch.equal(whole(ids).logits, dense(ids).logits)
    assert grid_linears(whole).keys() == layers.keys()
    trained = {n for n, p in whole.named_parameters() if p.requires_grad}
    norms = {n for n, _ in whole.named_parameters() if "norm" in n}
    assert trained == norms | {f"{n}.{part}" for n in layers for part in ("weight", "factors")}
    assert FinishedGrids(whole).keys() == layers.keys()
    assert torch.equal(
        FinishedGrids(whole)[next(iter(layers))].codes, layers[next(iter(layers))].codes
    )
    assert other_tensors(whole).keys() == norms | {"model.embed_tokens.weight"}


def test_parameters_of_the_export_take_the_place_of_the_float_ones(model):
    whole, _ = model
    gain = torch.full((64,), 2.5)
    put_on_grids(whole, {}, {"model.norm.weight": gain}, FinetuneConfig(), "full", torch.float16, 0)
    assert torch.equal(whole.model.norm.weight, gain)


def test_rates_follow_the_kind_of_a_parameter_and_the_step_of_its_layer(model):
    whole, folder = model
    layers = quantize_all(folder, 2, 32, False)
    config = FinetuneConfig(lr=0.5, scale_lr=0.25)
    rates = peak_rates(put_on_grids(whole, layers, {}, config, "full", torch.float16, 0), config)
    name = "model.layers.0.mlp.up_proj"
    assert (rates[f"{name}.weight"], rates[f"{name}.factors"]) == (0.5, 0.25)
    assert rates["model.norm.weight"] == 0.25
    config = FinetuneConfig(lora=LoraConfig(rank=2, lr_ratio=0.125), scale_lr=0.25)
    fresh = load_causal_lm(folder, torch.float32, "cpu")
    rates = peak_rates(put_on_grids(fresh, layers, {}, config, "full", torch.float16, 0), config)
    wanted = 0.125 * layers[name].scales.mean().item()
    assert rates[f"{name}.lora_a"] == rates[f"{name}.lora_b"] == pytest.approx(wanted)
    assert f"{name}.weight" not in rates


def test_a_block_starts_as_it_does_in_the_model(model):
    whole, folder = model
    layers = quantize_all(folder, 2, 32, False)
    config = FinetuneConfig(lora=LoraConfig(rank=2))
    block = load_causal_lm(folder, torch.float32, "cpu").model.layers[1]
    prefix = "model.layers.1."
    inside = {n.removeprefix(prefix): w for n, w in layers.items() if n.startswith(prefix)}
    alone = put_on_grids(block, inside, {}, config, "full", torch.float16, 3, prefix)
    put_on_grids(whole, layers, {}, config, "full", torch.float16, 3)
    for name, value in trained_state(alone).items():
        assert torch.equal(value, whole.get_parameter(prefix + name))


def test_a_state_goes_back_where_it_came_from_and_nowhere_else(linear, quantized):
    made = GridLinear(linear, quantized, "full", torch.float16)
    state = {name: value + 1 for name, value in trained_state(made).items()}
    load_trained(made, state)
    assert torch.equal(made.weight, state["weight"])
    with pytest.raises(ValueError, match="factors is in only one"):
        load_trained(made, {"weight": state["weight"]})
