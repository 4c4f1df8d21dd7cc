"""Rounding to an export's grid: it starts at the export, its gradients are the formula's."""

import pytest
import torch

from normtweak_core.finetune.grid import REACH, Grid, on_grid, start_latent, to_quantized
from normtweak_core.quantization.gptq import round_to_nearest
from normtweak_core.quantization.grid import GridSpec
from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.ternary.quantizers import lsq

KINDS = [
    (2, False, "full"), (2, True, "full"), (2, True, "ternary"), (2, True, "binary"),
    (3, False, "full"), (4, True, "full"), (8, False, "full"),
]  # fmt: skip


def made(weight, bits, symmetric, levels, group_size=8, dtype=torch.float16):
    spec = GridSpec(bits, symmetric, True, dtype, levels)
    quantized = round_to_nearest(weight, group_size, spec).weight
    return quantized, Grid.of(quantized, levels, dtype)


@pytest.mark.parametrize(("bits", "symmetric", "levels"), KINDS)
def test_training_starts_exactly_at_the_export(bits, symmetric, levels, seeded):
    weight = torch.randn(6, 32, generator=seeded(1))
    quantized, grid = made(weight, bits, symmetric, levels)
    # GPTQ's codes are not those of the nearest level: move the float weight away from its own.
    moved = weight + 0.4 * torch.randn(6, 32, generator=seeded(2))
    start, ones = start_latent(moved, quantized, grid), torch.ones_like(quantized.scales)
    again = to_quantized(start, ones, grid, quantized)
    assert torch.equal(again.codes, quantized.codes)
    assert torch.equal(again.scales, quantized.scales)
    assert torch.equal(again.zeros, quantized.zeros)
    assert torch.equal(on_grid(start, ones, grid), quantized.dequantize())


def test_latent_weights_start_at_their_level_on_the_side_of_the_float_weight(seeded):
    weight = torch.randn(6, 32, generator=seeded(1))
    quantized, grid = made(weight, 4, False, "full")
    start = start_latent(weight, quantized, grid)
    levels = quantized.codes.float() - quantized.zeros.repeat_interleave(8, dim=1)
    exact = weight / quantized.scales.repeat_interleave(8, dim=1)
    near = (exact - levels).abs() < REACH
    assert 0.2 < near.float().mean() < 0.8
    assert torch.allclose(start[near], exact[near], atol=1e-5)
    away = start[~near] - levels[~near]
    assert torch.allclose(away, REACH * (exact - levels)[~near].sign(), atol=1e-5)


@pytest.mark.parametrize(("bits", "symmetric", "levels"), KINDS)
def test_what_is_exported_is_what_was_multiplied_with(bits, symmetric, levels, seeded):
    quantized, grid = made(torch.randn(5, 24, generator=seeded(3)), bits, symmetric, levels)
    latent = 3 * torch.randn(5, 24, generator=seeded(4))
    factors = 1 + 0.3 * torch.rand(5, 3, generator=seeded(5))
    exported = to_quantized(latent, factors, grid, quantized)
    assert torch.equal(exported.dequantize(), on_grid(latent, factors, grid))
    assert torch.equal(exported.scales, (quantized.scales * factors).to(torch.float16).float())
    assert exported.codes.max() <= 2**bits - 1
    used = set((exported.codes.int() - 2 ** (bits - 1)).unique().tolist())
    assert levels == "full" or used == {"ternary": {-1, 0, 1}, "binary": {-1, 1}}[levels]


def slow_gradients(latent, factors, quantized, top, width, upstream):
    """The formula, number by number, in float64."""
    of_latent, of_factors = torch.zeros_like(latent), torch.zeros_like(factors)
    for row in range(latent.shape[0]):
        for column in range(latent.shape[1]):
            group = column // width
            scale = quantized.scales[row, group].double()
            low = -quantized.zeros[row, group].double()
            high = low + top
            value = latent[row, column]
            level = min(max(torch.round(value), low), high)
            used = (scale * factors[row, group]).to(torch.float16).double()
            if low - 0.5 <= value <= high + 0.5:
                of_latent[row, column] = upstream[row, column] * used
            of_factors[row, group] += upstream[row, column] * level * scale
    return of_latent, of_factors


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_those_of_the_formula(seed, bits, seeded):
    random = seeded(seed)
    quantized, grid = made(torch.randn(3, 12, generator=random), bits, False, "full", group_size=4)
    latent = (2**bits * torch.randn(3, 12, generator=random)).requires_grad_(True)
    factors = (0.8 + 0.4 * torch.rand(3, 3, generator=random)).requires_grad_(True)
    upstream = torch.randn(3, 12, generator=random)
    on_grid(latent, factors, grid).backward(upstream)
    wanted = slow_gradients(
        latent.detach().double(), factors.detach().double(), quantized, 2**bits - 1, 4,
        upstream.double(),
    )  # fmt: skip
    assert torch.allclose(latent.grad, wanted[0].float(), atol=1e-6)
    assert torch.allclose(factors.grad, wanted[1].float(), atol=1e-5)
    assert (latent.grad == 0).any(), "no weight was clipped: the test says nothing of those"


def test_the_gradient_of_a_factor_is_the_true_one_for_the_codes_as_they_are(seeded):
    quantized, grid = made(torch.randn(2, 8, generator=seeded(1)), 2, False, "full", None)
    latent = start_latent(torch.randn(2, 8, generator=seeded(2)), quantized, grid)
    factors = torch.ones(2, 1, requires_grad=True)
    upstream = torch.randn(2, 8, generator=seeded(3))
    (on_grid(latent, factors, grid) * upstream).sum().backward()
    step = 0.25  # the loss is linear in a factor, and float16 holds such steps well
    for row in range(2):
        moved = torch.ones(2, 1)
        moved[row] += step
        change = (on_grid(latent, moved, grid) - quantized.dequantize()) * upstream
        assert change.sum().item() / step == pytest.approx(factors.grad[row].item(), rel=2e-3)


def test_one_group_with_a_middle_zero_rounds_as_lsq(seeded):
    weight = torch.randn(4, 16, generator=seeded(6))
    quantized, grid = made(weight, 3, True, "full", group_size=None, dtype=torch.float32)
    ours = on_grid(weight / quantized.scales, torch.ones_like(quantized.scales), grid)
    assert torch.equal(ours, lsq(weight, quantized.scales, 3))


def test_binary_weights_are_never_clipped(seeded):
    quantized, grid = made(torch.randn(2, 8, generator=seeded(8)), 2, True, "binary")
    latent = (4 * torch.randn(2, 8, generator=seeded(9))).requires_grad_(True)
    on_grid(latent, torch.ones(2, 1), grid).sum().backward()
    assert torch.equal(latent.grad, quantized.scales.expand(2, 8))


def test_scales_are_rounded_before_use_and_learn_all_the_same(seeded):
    quantized, grid = made(
        torch.randn(2, 8, generator=seeded(10)), 4, False, "full", dtype=torch.bfloat16
    )
    latent = start_latent(torch.randn(2, 8, generator=seeded(11)), quantized, grid)
    little = torch.full((2, 1), 1 + 1e-4, requires_grad=True)  # less than bfloat16 can tell
    out = on_grid(latent, little, grid)
    assert torch.equal(out, quantized.dequantize())
    out.sum().backward()
    assert little.grad.abs().sum() > 0


def test_negative_scales_of_other_tools_stay_negative():
    scales = torch.tensor([[-0.5, 0.25]])
    codes = torch.tensor([[0, 15, 7, 8]], dtype=torch.uint8)
    zeros = torch.full((1, 2), 8, dtype=torch.uint8)
    weight = QuantizedWeight(codes, scales, zeros, 4, 2, True)
    grid = Grid.of(weight, "full", torch.float16)
    latent = start_latent(weight.dequantize(), weight, grid)
    factors = torch.tensor([[2.0, 2.0]])
    assert torch.equal(on_grid(latent, torch.ones(1, 2), grid), weight.dequantize())
    assert torch.equal(to_quantized(latent, factors, grid, weight).scales, 2 * scales)
