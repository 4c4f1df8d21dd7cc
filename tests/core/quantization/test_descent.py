"""Coordinate descent over scales and codes against a search that asks the whole objective."""

import pytest
import torch

from normtweak_core.quantization import descent
from normtweak_core.quantization.descent import Grids, descend
from normtweak_core.quantization.gptq import fit_all_groups
from normtweak_core.quantization.grid import GridSpec
from tests.reference import descent_oracle

KINDS = [(2, False, "full"), (3, True, "full"), (4, False, "full")]
KINDS += [(2, True, "ternary"), (2, True, "binary")]


def problem(seeded, spec, out=10, width=48, group=16, seed=0):
    """Weights, a damped Hessian, and the nearest codes, from which the descent starts."""
    generator = seeded(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    x = torch.randn(400, width, generator=generator) @ mixing @ mixing
    H = 2 * x.T @ x / len(x)
    H += 0.01 * H.diagonal().mean() * torch.eye(width)
    W = torch.randn(out, width, generator=generator)
    scales, zeros = fit_all_groups(W, group, spec)
    codes = spec.codes(W, scales.repeat_interleave(group, 1), zeros.repeat_interleave(group, 1))
    return W, H, Grids(codes, scales, zeros)


def errors(W, H, grids):
    """The objective of each row, in float64."""
    D = grids.dequantized().double() - W.double()
    return ((D @ H.double()) * D).sum(1)


def used_codes(spec):
    if spec.levels == "full":
        return lambda zero: range(spec.max_code + 1)
    steps = (-1, 0, 1) if spec.levels == "ternary" else (-1, 1)
    return lambda zero: [zero + step for step in steps]


@pytest.mark.parametrize(("bits", "symmetric", "levels"), KINDS)
@pytest.mark.parametrize("group", [16, 48])
def test_codes_and_scales_equal_those_of_the_search(seeded, bits, symmetric, levels, group):
    spec = GridSpec(bits, symmetric, True, torch.float32, levels)
    W, H, start = problem(seeded, spec, group=group, seed=bits)
    expected = descent_oracle(W, H, start.codes, start.scales, start.zeros, used_codes(spec), 2)
    found = descend(W, H, start, spec, 2)
    assert torch.equal(found.zeros, start.zeros)
    # A tie broken the other way in float32 moves what comes after it in its row.
    agree = (found.codes == expected[0]).all(dim=1)
    agree &= torch.isclose(found.scales.double(), expected[1], rtol=1e-4).all(dim=1)
    assert agree.sum() >= len(W) - 1
    assert (found.codes != start.codes).any()


@pytest.mark.parametrize(("bits", "symmetric", "levels"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_no_sweep_raises_the_error_of_any_row(seeded, bits, symmetric, levels, dtype):
    spec = GridSpec(bits, symmetric, True, dtype, levels)
    W, H, grids = problem(seeded, spec, out=40, seed=1)
    before = first = errors(W, H, grids)
    for _ in range(6):
        grids = descend(W, H, grids, spec, 1)
        assert torch.equal(grids.scales.to(dtype).float(), grids.scales)
        assert set(grids.codes.unique().tolist()) <= set(used_codes(spec)(2 ** (bits - 1)))
        after = errors(W, H, grids)
        assert (after <= before * (1 + 1e-5)).all()
        before = after
    assert after.sum() < 0.8 * first.sum()


def test_sweeps_are_one_after_the_other_and_end_where_nothing_moves(seeded):
    spec = GridSpec(2, False, True, torch.float16)
    W, H, grids = problem(seeded, spec)
    one_by_one = descend(W, H, descend(W, H, grids, spec, 1), spec, 1)
    together = descend(W, H, grids, spec, 2)
    assert torch.equal(one_by_one.codes, together.codes)
    assert torch.allclose(one_by_one.scales, together.scales, rtol=2e-3)
    assert torch.equal(descend(W, H, grids, spec, 0).codes, grids.codes)
    end = descend(W, H, grids, spec, 60)
    assert torch.equal(descend(W, H, end, spec, 1).codes, end.codes)


@pytest.mark.parametrize("group", [32, 96])
def test_columns_taken_together_do_not_change_the_result(seeded, monkeypatch, group):
    spec = GridSpec(3, False, True, torch.float16)
    W, H, grids = problem(seeded, spec, width=96, group=group)
    results = []
    for size in (7, 32, 96, 128):
        monkeypatch.setattr(descent, "BLOCK_SIZE", size)
        results.append(descend(W, H, grids, spec, 2))
    for other in results[1:]:
        assert (other.codes == results[0].codes).float().mean() > 0.995


def test_uncorrelated_inputs_leave_the_nearest_codes_and_the_mean_scale(seeded):
    spec = GridSpec(4, False, True, torch.float32)
    W, _, grids = problem(seeded, spec, group=48)
    found = descend(W, torch.eye(48), grids, spec, 50)
    levels = found.codes - found.zeros
    assert torch.equal(spec.codes(W, found.scales, found.zeros), found.codes)
    best = (W * levels).sum(1, keepdim=True) / levels.square().sum(1, keepdim=True)
    torch.testing.assert_close(found.scales, best)


def test_what_is_given_stays_as_it_was_and_a_row_of_zeros_stays_zero(seeded):
    spec = GridSpec(2, False, True, torch.float16)
    W, H, grids = problem(seeded, spec)
    W[3] = 0
    scales, zeros = fit_all_groups(W, 16, spec)
    grids.scales[3], grids.zeros[3], grids.codes[3] = scales[3], zeros[3], zeros[3].repeat(16)
    copies = [x.clone() for x in (W, H, grids.codes, grids.scales, grids.zeros)]
    found = descend(W, H, grids, spec, 3)
    assert not found.dequantized()[3].any()
    for now, before in zip((W, H, grids.codes, grids.scales, grids.zeros), copies, strict=True):
        assert torch.equal(now, before)
