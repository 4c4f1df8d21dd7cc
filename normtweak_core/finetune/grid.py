"""Rounding to the grid of an export, with gradients for the latent weight and for the scales.

A latent weight is kept in levels: ``weight = scale * round(latent)``, where scale is that of the
export times a factor. So the rate of a latent weight says which part of a level a step may go, and
that of a factor which part of the scale, whatever the width, the group or the layer.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from normtweak_core.quantization.grid import round_scale
from normtweak_core.quantization.weight import QuantizedWeight

# How far from its level a latent weight may start, in levels; half of one is where the code
# changes. docs/log.md has what other values bring.
REACH = 0.25


@dataclass(frozen=True)
class Grid:
    """The levels of one layer, ``low .. high`` in units of the scale, and the export's scales."""

    scales: Float[Tensor, "out groups"]
    zeros: Float[Tensor, "out groups 1"]
    low: Float[Tensor, "out groups 1"]
    high: Float[Tensor, "out groups 1"]
    levels: Literal["full", "ternary", "binary"]
    scale_dtype: torch.dtype  # the export dtype: scales are rounded to it before any use

    @classmethod
    def of(
        cls,
        weight: QuantizedWeight,
        levels: Literal["full", "ternary", "binary"],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> "Grid":
        """Return the grid that a quantized weight lies on."""
        scales = weight.scales.to(device, torch.float32)
        zeros = weight.zeros.to(device, torch.float32)[:, :, None]
        low, high = -zeros, 2**weight.bits - 1 - zeros
        if levels != "full":
            low, high = torch.full_like(zeros, -1), torch.full_like(zeros, 1)
        return cls(scales, zeros, low, high, levels, dtype)

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> "Grid":
        """Return the grid whose tensors are those that a function makes of ours."""
        tensors = ("scales", "zeros", "low", "high")
        return replace(self, **{name: fn(getattr(self, name)) for name in tensors})

    def round(self, latent: Float[Tensor, "out groups width"]) -> Float[Tensor, "out groups width"]:
        """Return the level nearest to each latent weight."""
        if self.levels == "binary":
            return torch.where(latent >= 0, 1.0, -1.0)
        return torch.clamp(latent.round(), self.low, self.high)

    def scaled(self, factors: Float[Tensor, "out groups"]) -> Float[Tensor, "out groups"]:
        """Return the export's scales times their factors, rounded to the export dtype.

        Those of other tools may be negative, and stay so.
        """
        return torch.copysign(
            round_scale(self.scales.abs() * factors, self.scale_dtype), self.scales
        )


class _OnGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, factors: Tensor, grid: Grid) -> Tensor:
        grouped = latent.unflatten(1, (factors.shape[1], -1))
        levels, scales = grid.round(grouped), grid.scaled(factors)[:, :, None]
        clipped = (grouped < grid.low - 0.5) | (grouped > grid.high + 0.5)
        ctx.save_for_backward(levels, scales, clipped)
        ctx.grid = grid
        return (levels * scales).flatten(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        levels, scales, clipped = ctx.saved_tensors
        grouped = gradient.unflatten(1, levels.shape[1:])
        of_factors = (grouped * levels).sum(dim=2) * ctx.grid.scales
        passed = grouped if ctx.grid.levels == "binary" else grouped * ~clipped
        return (passed * scales).flatten(1), of_factors, None


def on_grid(
    latent: Float[Tensor, "out in"], factors: Float[Tensor, "out groups"], grid: Grid
) -> Float[Tensor, "out in"]:
    """Return ``scale * factor * round(latent)`` with gradients for latent and factors.

    The rounding of latent weights and of scales is passed straight through (STE), but for a latent
    weight more than half a level outside the outermost one, which gets none. The gradient of a
    factor is the true one for the codes as they are. LSQ (arXiv 1902.08153) keeps the latent
    weight in units of the weight instead, so that its gradient of a scale vanishes where weights
    lie on their levels, which is where an export starts: Adam then scales noise up to full steps.
    """
    return _OnGrid.apply(latent, factors, grid)


def start_latent(
    float_weight: Float[Tensor, "out in"], quantized: QuantizedWeight, grid: Grid
) -> Float[Tensor, "out in"]:
    """Return latent weights, in levels, that round to the export's codes.

    Each starts at its level, moved towards the float weight by at most `REACH`, so that where that
    lies near another level a shorter way leads there.
    """
    codes = quantized.codes.to(grid.scales.device, torch.float32)
    levels = codes.unflatten(1, (grid.scales.shape[1], -1)) - grid.zeros
    wanted = float_weight.float().unflatten(1, levels.shape[1:]) / grid.scales[:, :, None]
    return (levels + torch.clamp(wanted - levels, -REACH, REACH)).flatten(1)


@torch.no_grad()
def to_quantized(
    latent: Float[Tensor, "out in"],
    factors: Float[Tensor, "out groups"],
    grid: Grid,
    like: QuantizedWeight,
) -> QuantizedWeight:
    """Return a trained weight as codes and scales; width, groups, zeros are those of ``like``."""
    levels = grid.round(latent.unflatten(1, (factors.shape[1], -1)))
    return QuantizedWeight(
        (levels + grid.zeros).flatten(1).to(torch.uint8).cpu(),
        grid.scaled(factors).cpu(),
        like.zeros.cpu(),
        like.bits,
        like.group_size,
        like.symmetric,
        like.activation_bits,
    )
