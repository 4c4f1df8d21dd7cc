"""Fit the grid of a group of weights: one scale and one zero, per row and group.

A grid has 2**bits levels ``scale * (code - zero)``. Min-max puts the outermost levels on the
extreme weights; the error search shrinks that range step by step and keeps, for each row and
group, the range with the least error.

Ternary and binary grids are symmetric 2-bit grids of which only the levels -1, 0, 1 or -1, 1 (times
the scale) are used: every format that holds 2 bits holds them. Their scale starts from the mean
magnitude (absmean), as in BitNet b1.58.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

# The published search (IST-DASLab/gptq, quant.py): 80 ranges, 1 % apart, error |q - w| ** 2.4.
SEARCH_STEPS = 80
SEARCH_STEP = 0.01
ERROR_NORM = 2.4
# Scales that are tried for ternary and binary grids, as multiples of the mean magnitude.
MEAN_FACTORS = [0.5 + 0.02 * i for i in range(76)]


@dataclass(frozen=True)
class GridSpec:
    """What every grid of a layer has in common."""

    bits: int
    symmetric: bool
    mse_grid: bool
    scale_dtype: torch.dtype  # the export dtype: scales are rounded to it before any use
    levels: Literal["full", "ternary", "binary"] = "full"

    @property
    def max_code(self) -> int:
        """Largest code."""
        return 2**self.bits - 1

    def codes(
        self,
        weight: Float[Tensor, "*shape"],
        scale: Float[Tensor, "*#shape"],
        zero: Float[Tensor, "*#shape"],
    ) -> Float[Tensor, "*shape"]:
        """Return the code of the level nearest to each weight, among the levels that are used."""
        if self.levels == "full":
            return quantize_to_codes(weight, scale, zero, self.max_code)
        if self.levels == "ternary":
            return torch.round(weight / scale).clamp_(-1, 1).add_(zero)
        return torch.where(weight >= 0, 1.0, -1.0).add_(zero)


def quantize_to_codes(
    weight: Float[Tensor, "*shape"],
    scale: Float[Tensor, "*#shape"],
    zero: Float[Tensor, "*#shape"],
    max_code: int,
) -> Float[Tensor, "*shape"]:
    """Return the nearest code of each weight, as floats in ``0 .. max_code``."""
    return torch.clamp(torch.round(weight / scale) + zero, 0, max_code)


def fit_grid(
    weight: Float[Tensor, "out group"], spec: GridSpec
) -> tuple[Float[Tensor, " out"], Float[Tensor, " out"]]:
    """Return scale and zero (a whole number) of each row of one group.

    Args:
        weight: Rows of one group of input columns, float32.
        spec: Width and kind of the grid.

    Source: IST-DASLab/gptq ``quant.py``. Zero stays inside the range in asymmetric grids
        (min <= 0 <= max), so that a weight of zero is representable.
    """
    if spec.levels != "full":
        return _fit_around_mean(weight, spec)
    low = weight.amin(dim=1).clamp(max=0)
    high = weight.amax(dim=1).clamp(min=0)
    if spec.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    empty = (low == 0) & (high == 0)  # any scale represents a row of zeros
    low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
    scale, zero = _grid_of_range(low, high, spec)
    if not spec.mse_grid:
        return scale, zero
    best = torch.full_like(scale, torch.inf)
    for step in range(SEARCH_STEPS):
        shrunk = 1 - step * SEARCH_STEP
        trial_scale, trial_zero = _grid_of_range(low * shrunk, high * shrunk, spec)
        error = _row_error(weight, trial_scale, trial_zero, spec)
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, trial_scale, scale)
        zero = torch.where(better, trial_zero, zero)
    return scale, zero


def _fit_around_mean(
    weight: Float[Tensor, "out group"], spec: GridSpec
) -> tuple[Float[Tensor, " out"], Float[Tensor, " out"]]:
    """Return the scale of a ternary or binary grid: the mean magnitude, or the best near it."""
    mean = weight.abs().mean(dim=1)
    scale = round_scale(mean, spec.scale_dtype)
    zero = torch.full_like(scale, 2 ** (spec.bits - 1))
    best = torch.full_like(scale, torch.inf)
    for factor in MEAN_FACTORS if spec.mse_grid else ():
        trial = round_scale(mean * factor, spec.scale_dtype)
        levels = (spec.codes(weight, trial[:, None], zero[:, None]) - zero[:, None]) * trial[
            :, None
        ]
        error = (levels - weight).abs_().pow_(ERROR_NORM).sum(dim=1)
        scale = torch.where(error < best, trial, scale)
        best = torch.minimum(best, error)
    return scale, zero


def _row_error(
    weight: Float[Tensor, "out group"],
    scale: Float[Tensor, " out"],
    zero: Float[Tensor, " out"],
    spec: GridSpec,
) -> Float[Tensor, " out"]:
    scale, zero = scale[:, None], zero[:, None]
    # quantize_to_codes, then |scale (code - zero) - w| ** p, in one buffer: this runs SEARCH_STEPS
    # times over all weights, and a fresh temporary for each operation costs as much as the power.
    error = (weight / scale).round_().add_(zero).clamp_(0, spec.max_code)
    return error.sub_(zero).mul_(scale).sub_(weight).abs_().pow_(ERROR_NORM).sum(dim=1)


def _grid_of_range(
    low: Float[Tensor, " out"], high: Float[Tensor, " out"], spec: GridSpec
) -> tuple[Float[Tensor, " out"], Float[Tensor, " out"]]:
    scale = round_scale((high - low) / spec.max_code, spec.scale_dtype)
    if spec.symmetric:
        return scale, torch.full_like(scale, 2 ** (spec.bits - 1))
    return scale, torch.round(-low / scale).clamp(0, spec.max_code)


def round_scale(scale: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """Return float32 scales that ``dtype`` holds exactly and that are never zero or infinite.

    A scale below the smallest positive number of ``dtype`` becomes that number: a scale of zero
    would turn its whole group to zero, whatever the codes.
    """
    limits = torch.finfo(dtype)
    smallest = limits.smallest_normal * limits.eps
    return scale.clamp(smallest, limits.max).to(dtype).to(torch.float32)
