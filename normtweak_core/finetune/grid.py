"""Rounding to the grid of an export, with gradients for the weight and for its scales.

Grids have groups, zeros, and widths of 2 to 8 bits, as `normtweak_core.quantize.grid` fits them;
`lsq` of `normtweak_core.ternary.quantizers` is the special case of one group and a middle zero.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from normtweak_core.quantize.grid import round_scale
from normtweak_core.quantize.weight import QuantizedWeight

INSIDE = 0.999  # of half a level: how far a start may lie from its level without changing its code


@dataclass(frozen=True)
class Grid:
    """The levels of one layer but for their scales: ``low .. high``, in units of the scale."""

    low: Float[Tensor, "out groups 1"]
    high: Float[Tensor, "out groups 1"]
    levels: Literal["full", "ternary", "binary"]
    scale_dtype: torch.dtype  # the export dtype: scales are rounded to it before any use

    @classmethod
    def of(
        cls, weight: QuantizedWeight, levels: Literal["full", "ternary", "binary"], dtype: Any
    ) -> "Grid":
        """Return the grid that a quantized weight lies on.

        Args:
            weight: Codes, scales and zeros.
            levels: Which levels of the width are used.
            dtype: The export dtype.
        """
        zeros = weight.zeros.to(torch.float32)[:, :, None]
        if levels == "full":
            return cls(-zeros, 2**weight.bits - 1 - zeros, levels, dtype)
        return cls(torch.full_like(zeros, -1), torch.full_like(zeros, 1), levels, dtype)

    def to(self, device: torch.device | str) -> "Grid":
        """Return the grid on another device."""
        return Grid(self.low.to(device), self.high.to(device), self.levels, self.scale_dtype)

    def round(self, ratio: Float[Tensor, "out groups width"]) -> Float[Tensor, "out groups width"]:
        """Return the level nearest to each weight, both in units of the scale."""
        if self.levels == "binary":
            return torch.where(ratio >= 0, 1.0, -1.0)
        return torch.clamp(ratio.round(), self.low, self.high)


class _OnGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scales: Tensor, grid: Grid) -> Tensor:
        scale = round_scale(scales, grid.scale_dtype)[:, :, None]
        ratio = weight.unflatten(1, (scales.shape[1], -1)) / scale
        levels = grid.round(ratio)
        ctx.save_for_backward(ratio, levels)
        ctx.grid = grid
        return (levels * scale).flatten(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        ratio, levels = ctx.saved_tensors
        grid: Grid = ctx.grid
        grouped = gradient.unflatten(1, ratio.shape[1:])
        if grid.levels == "binary":
            clipped, slope = torch.zeros_like(ratio, dtype=torch.bool), levels
        else:
            clipped = (ratio < grid.low - 0.5) | (ratio > grid.high + 0.5)
            slope = torch.where(clipped, levels, levels - ratio)
        factor = 1 / math.sqrt(ratio.shape[2])
        scale_gradient = (grouped * slope).sum(dim=2) * factor
        return (grouped * ~clipped).flatten(1), scale_gradient, None


def on_grid(
    weight: Float[Tensor, "out in"], scales: Float[Tensor, "out groups"], grid: Grid
) -> Float[Tensor, "out in"]:
    """Return the weight rounded to the grid, with gradients for weight and scales.

    Source: LSQ (arXiv 1902.08153), equations 1 to 3, with groups and zeros. Where we differ: a
    weight counts as clipped half a level outside the outermost one, where rounding begins to lose
    more than anywhere inside; the scale's gradient is damped by the group's size alone; scales are
    rounded to the export dtype and their gradient passes straight through that.
    """
    return _OnGrid.apply(weight, scales, grid)


def start_weight(
    float_weight: Float[Tensor, "out in"], quantized: QuantizedWeight, grid: Grid
) -> Float[Tensor, "out in"]:
    """Return the latent weight nearest to the float one that still rounds to the export's codes.

    So training starts exactly at the export, and where the float weight lies near another level,
    a short way leads there.
    """
    level = quantized.dequantize()
    scale = quantized.scales.repeat_interleave(level.shape[1] // quantized.scales.shape[1], dim=1)
    reach = INSIDE * scale * (1.0 if grid.levels == "binary" else 0.5)
    return level + torch.clamp(float_weight.float() - level, -reach, reach)


@torch.no_grad()
def to_quantized(
    weight: Float[Tensor, "out in"],
    scales: Float[Tensor, "out groups"],
    grid: Grid,
    like: QuantizedWeight,
) -> QuantizedWeight:
    """Return a trained weight as codes and scales; width, groups, zeros are those of ``like``."""
    rounded = round_scale(scales, grid.scale_dtype)
    ratio = weight.unflatten(1, (scales.shape[1], -1)) / rounded[:, :, None]
    codes = grid.round(ratio) + like.zeros.to(weight.device)[:, :, None]
    return QuantizedWeight(
        codes.flatten(1).to(torch.uint8).cpu(),
        rounded.cpu(),
        like.zeros.cpu(),
        like.bits,
        like.group_size,
        like.symmetric,
    )
