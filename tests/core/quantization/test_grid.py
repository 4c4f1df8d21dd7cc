"""Grids against a plain-Python search, and their properties."""

import pytest
import torch

from normtweak_core.quantization.grid import GridSpec, fit_grid, quantize_to_codes, round_scale
from normtweak_core.ternary.quantizers import absmean, binary
from tests.reference import grid_oracle


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("mse", [False, True])
def test_grid_equals_the_plain_search(seeded, bits, symmetric, mse):
    weight = torch.randn(6, 33, generator=seeded(bits)) + 0.3
    spec = GridSpec(bits, symmetric, mse, torch.float32)
    scale, zero = fit_grid(weight, spec)
    for row in range(6):
        expected_scale, expected_zero = grid_oracle(weight[row].tolist(), bits, symmetric, mse)
        assert scale[row].item() == pytest.approx(expected_scale, rel=1e-5)
        assert zero[row].item() == expected_zero


@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.0, 6.0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_error_is_weighted_and_to_the_power_that_is_asked_for(seeded, exponent, symmetric):
    weight = torch.randn(6, 40, generator=seeded(7))
    importance = torch.rand(40, generator=seeded(8)) ** 4
    spec = GridSpec(2, symmetric, True, torch.float32)
    scale, zero = fit_grid(weight, spec, importance, exponent)
    unlike = 0
    for row in range(6):
        values = weight[row].tolist()
        expected = grid_oracle(values, 2, symmetric, True, importance.tolist(), exponent)
        assert scale[row].item() == pytest.approx(expected[0], rel=1e-5)
        assert zero[row].item() == expected[1]
        unlike += expected != grid_oracle(values, 2, symmetric, True, None, exponent)
    assert unlike > 0


def test_groups_are_fitted_as_each_by_itself(seeded):
    weight = torch.randn(5, 3, 16, generator=seeded(9))
    importance = torch.rand(3, 16, generator=seeded(10))
    for levels in ("full", "ternary", "binary"):
        spec = GridSpec(2, True, True, torch.float16, levels)
        scales, zeros = fit_grid(weight, spec, importance, 3.0)
        for group in range(3):
            alone = fit_grid(weight[:, group], spec, importance[group], 3.0)
            assert torch.equal(alone[0], scales[:, group])
            assert torch.equal(alone[1], zeros[:, group])


def test_the_larger_the_exponent_the_less_is_clipped(seeded):
    weight = torch.randn(64, 64, generator=seeded(11))
    spec = GridSpec(2, False, True, torch.float32)
    scales = [fit_grid(weight, spec, None, p)[0].mean().item() for p in (2.0, 3.0, 4.0, 6.0)]
    assert scales == sorted(scales)
    assert scales[-1] > 1.2 * scales[0]


def test_search_never_hurts_and_at_two_bits_helps(seeded):
    weight = torch.randn(64, 64, generator=seeded(1))
    errors = []
    for mse in (False, True):
        spec = GridSpec(2, False, mse, torch.float16)
        scale, zero = (part[:, None] for part in fit_grid(weight, spec))
        rounded = scale * (quantize_to_codes(weight, scale, zero, 3) - zero)
        errors.append((rounded - weight).abs().pow(2.4).sum(dim=1))
    assert (errors[1] <= errors[0]).all()
    assert errors[1].sum() < 0.8 * errors[0].sum()


def test_zero_is_representable_in_every_grid(seeded):
    weight = torch.rand(8, 16, generator=seeded(2)) + 1.0  # all positive
    for symmetric in (False, True):
        scale, zero = fit_grid(weight, GridSpec(3, symmetric, True, torch.float32))
        codes = quantize_to_codes(torch.zeros(8, 1), scale[:, None], zero[:, None], 7)
        assert torch.equal(scale[:, None] * (codes - zero[:, None]), torch.zeros(8, 1))


def test_a_row_of_zeros_stays_zero():
    scale, zero = fit_grid(torch.zeros(2, 8), GridSpec(2, False, True, torch.float16))
    codes = quantize_to_codes(torch.zeros(2, 8), scale[:, None], zero[:, None], 3)
    assert torch.equal(scale[:, None] * (codes - zero[:, None]), torch.zeros(2, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_survive_the_export_dtype(seeded, dtype):
    scale, _ = fit_grid(torch.randn(50, 40, generator=seeded(3)), GridSpec(4, False, True, dtype))
    assert torch.equal(scale.to(dtype).float(), scale)


def test_a_scale_that_half_precision_would_lose_is_kept_positive_and_finite():
    limits = torch.finfo(torch.float16)
    assert round_scale(torch.tensor([1e-30, 1e30]), torch.float16).tolist() == [
        limits.smallest_normal * limits.eps,
        limits.max,
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounded_scales_are_positive_numbers_of_the_dtype_and_the_nearest_ones(dtype, seeded):
    exponents = torch.linspace(-12, 3, 60)
    scales = (torch.rand(60, generator=seeded()) + 0.5) * 10**exponents
    rounded = round_scale(scales, dtype)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded.to(dtype).to(torch.float32), rounded)
    assert (rounded > 0).all()
    assert torch.equal(round_scale(rounded, dtype), rounded)
    normal = scales > torch.finfo(dtype).smallest_normal
    error = (rounded - scales).abs() / scales
    assert (error[normal] <= torch.finfo(dtype).eps / 2).all()


@pytest.mark.parametrize(("levels", "used"), [("ternary", {1, 2, 3}), ("binary", {1, 3})])
@pytest.mark.parametrize("mse", [False, True])
def test_ternary_and_binary_grids_use_only_their_levels(seeded, levels, used, mse):
    weight = torch.randn(16, 64, generator=seeded(4))
    spec = GridSpec(2, True, mse, torch.float32, levels)
    scale, zero = (part[:, None] for part in fit_grid(weight, spec))
    codes = spec.codes(weight, scale, zero)
    assert set(codes.unique().tolist()) == used
    if not mse:
        torch.testing.assert_close(scale[:, 0], weight.abs().mean(dim=1))
        expected = absmean(weight, per_row=True) if levels == "ternary" else binary(weight)
        torch.testing.assert_close(scale * (codes - zero), expected)


def test_the_search_around_the_mean_never_hurts(seeded):
    weight = torch.randn(32, 64, generator=seeded(5))
    for levels in ("ternary", "binary"):
        errors = []
        for mse in (False, True):
            spec = GridSpec(2, True, mse, torch.float32, levels)
            scale, zero = (part[:, None] for part in fit_grid(weight, spec))
            rounded = scale * (spec.codes(weight, scale, zero) - zero)
            errors.append((rounded - weight).abs().pow(2.4).sum(dim=1))
        assert (errors[1] <= errors[0] * (1 + 1e-6)).all()
        assert errors[1].sum() < errors[0].sum()
