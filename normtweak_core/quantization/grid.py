"""Fit the grid of a group of weights: one scale and one zero, per row and group.

A grid has 2**bits levels ``scale * (code - zero)``. Min-max puts the outermost levels on the
extreme weights; the error search shrinks that range step by step and keeps, for each row and
group, the range with the least error.

Ternary and binary grids are symmetric 2-bit grids of which only the levels -1, 0, 1 or -1, 1 (times
the scale) are used: every format that holds 2 bits holds them. Their scale starts from the mean
magnitude (absmean), as in BitNet b1.58.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

# Multiples of the first range that are tried, then those around the best of them. The published
# search (IST-DASLab/gptq, quant.py) tries 80, 1 % apart, and finds the same to that 1 %.
COARSE = [1 - 0.04 * step for step in range(20)]
FINE = [-0.03, -0.02, -0.01, 0.01, 0.02, 0.03]
# Of ternary and binary grids, multiples of the mean magnitude.
MEAN_COARSE = [0.52 + 0.08 * step for step in range(19)]
MEAN_FINE = [-0.06, -0.04, -0.02, 0.02, 0.04, 0.06]
# Exponent of the error between a weight and its level in the published search.
ERROR_NORM = 2.4
# Weights that are searched together: what is tried for them stays in the processor's cache.
CHUNK = 2**17


@dataclass(frozen=True)
class GridSpec:
    """What every grid of a layer has in common."""

    bits: int
    symmetric: bool
    mse_grid: bool
    scale_dtype: torch.dtype  # the export dtype: scales are rounded to it before any use
    levels: Literal["full", "ternary", "binary"] = "full"
    one_scale: bool = False  # all rows share theirs; for one group as wide as the rows

    def together(self, rows: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """Return for each row the sum over the rows that it shares its scale with."""
        return rows.sum().expand_as(rows) if self.one_scale else rows

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
    weight: Float[Tensor, "*rows group"],
    spec: GridSpec,
    importance: Float[Tensor, "*#rows group"] | None = None,
    exponent: float = ERROR_NORM,
) -> tuple[Float[Tensor, " *rows"], Float[Tensor, " *rows"]]:
    """Return scale and zero (a whole number) of each group.

    Args:
        weight: Groups of input columns, float32.
        spec: Width and kind of the grid.
        importance: How much the error of each weight counts, as diag(H); None: all alike.
        exponent: Of the error that the search makes least. The larger, the less is clipped.

    Source: IST-DASLab/gptq ``quant.py``. Zero stays inside the range in asymmetric grids
        (min <= 0 <= max), so that a weight of zero is representable.
    """
    if spec.levels == "full":
        low, high = _range(weight, spec)
        coarse, fine = COARSE, FINE

        def grid(multiple: Tensor | float) -> tuple[Tensor, Tensor]:
            return _grid_of_range(low * multiple, high * multiple, spec)
    else:
        mean = weight.abs().mean(dim=-1)
        if spec.one_scale:
            mean = mean.mean().expand_as(mean)
        coarse, fine = MEAN_COARSE, MEAN_FINE

        def grid(multiple: Tensor | float) -> tuple[Tensor, Tensor]:
            scale = round_scale(mean * multiple, spec.scale_dtype)
            return scale, torch.full_like(scale, 2 ** (spec.bits - 1))

    first, zeros = grid(1.0)
    if not spec.mse_grid:
        return first, zeros

    def error(multiple: Tensor | float) -> Tensor:
        scale, zero = grid(multiple)
        steps = _error_in_steps(weight, scale, zero, spec, exponent)
        weighted = steps if importance is None else steps.mul_(importance)
        return spec.together(weighted.sum(dim=-1) * (scale / first) ** exponent)

    near = _least(error, coarse, torch.zeros_like(first))
    return grid(_least(error, [0.0, *fine], near))


def _range(weight: Float[Tensor, "*rows group"], spec: GridSpec) -> tuple[Tensor, Tensor]:
    low = weight.amin(dim=-1).clamp(max=0)
    high = weight.amax(dim=-1).clamp(min=0)
    if spec.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    empty = (low == 0) & (high == 0)  # any scale represents a row of zeros
    return torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)


def _least(
    error: Callable[[Tensor], Tensor], offsets: list[float], base: Float[Tensor, " *rows"]
) -> Float[Tensor, " *rows"]:
    """Return ``base`` and one of the offsets: for each group that with the least error."""
    best, chosen = torch.full_like(base, torch.inf), base
    for offset in offsets:
        found = error(base + offset)
        better = found < best
        best = torch.where(better, found, best)
        chosen = torch.where(better, base + offset, chosen)
    return chosen


def _error_in_steps(
    weight: Float[Tensor, "*rows group"],
    scale: Float[Tensor, " *rows"],
    zero: Float[Tensor, " *rows"],
    spec: GridSpec,
    exponent: float,
) -> Float[Tensor, "*rows group"]:
    """Return the distance of each weight from its level in steps of the scale, to the power."""
    scale, zero = scale[..., None], zero[..., None]
    steps = weight / scale
    # In place: this runs for each range over all weights, and a fresh temporary for each operation
    # costs as much as the rest.
    if spec.levels == "full":
        error = steps.round().add_(zero).clamp_(0, spec.max_code)
    else:
        error = spec.codes(weight, scale, zero)
    error = error.sub_(zero).sub_(steps).abs_()
    if exponent == 2:
        return error.square_()
    if exponent == 3:
        return error.mul_(steps.copy_(error).square_())
    if exponent == 4:
        return error.square_().square_()
    return error.pow_(exponent)


def _grid_of_range(
    low: Float[Tensor, " *rows"], high: Float[Tensor, " *rows"], spec: GridSpec
) -> tuple[Float[Tensor, " *rows"], Float[Tensor, " *rows"]]:
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
