"""A linear whose weight lies on the grid of an export, and that goes on learning there."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from normtweak_core.finetune.grid import Grid, on_grid, start_latent, to_quantized
from normtweak_core.model.structure import linear_weight
from normtweak_core.quantization.weight import QuantizedWeight


class GridLinear(nn.Module):
    """Multiplies with a weight rounded to the grid; learns the latent weight and the scales."""

    def __init__(
        self,
        float_linear: nn.Module,
        quantized: QuantizedWeight,
        levels: Literal["full", "ternary", "binary"],
        dtype: torch.dtype,
    ):
        """Start at the function of the export.

        Args:
            float_linear: What was quantized; its bias is kept and stays as it is.
            quantized: What it became.
            levels: Which levels of the width are used.
            dtype: The export dtype, to which scales are rounded in every pass.
        """
        super().__init__()
        weight = linear_weight(float_linear).detach()
        self._like, self.grid = quantized, Grid.of(quantized, levels, dtype, weight.device)
        self.weight = nn.Parameter(start_latent(weight, quantized, self.grid))  # in levels
        self.factors = nn.Parameter(torch.ones_like(self.grid.scales))
        self.register_buffer(
            "bias", None if float_linear.bias is None else float_linear.bias.detach()
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GridLinear":
        """Move the grid along with parameters; torch calls this of `to` and its like."""
        super()._apply(fn, recurse)
        self.grid = self.grid.mapped(fn)
        return self

    def latent(self) -> Float[Tensor, "out in"]:
        """Return the weight before rounding, in levels."""
        return self.weight

    @property
    def bits(self) -> int:
        """Width of its codes."""
        return self._like.bits

    def quantized(self) -> QuantizedWeight:
        """Return codes and scales as they stand."""
        return to_quantized(self.latent().detach(), self.factors.detach(), self.grid, self._like)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return ``x W^T + b`` with the rounded weight."""
        weight = on_grid(self.latent(), self.factors, self.grid)
        return linear(x, weight.to(x.dtype), self.bias)


class LoraGridLinear(GridLinear):
    """Rounds ``W + B A``, and learns A, B and the scales; W stays as it is.

    Source: EfficientDM's QALoRA (arXiv 2310.03270): A
    Kaiming-uniform, B zero, merged before rounding, so that codes and scales are all that is left
    at inference. Where we differ: W is the latent start of `GridLinear`, not the middle of its
    level, so that the update need not cross half a level before anything changes.

    No `peft`: its LoRA layers add the product to the output of a layer and merge it into the
    weight at the end. Here the sum has to be rounded in every pass, which that branch cannot do.
    """

    def __init__(
        self,
        float_linear: nn.Module,
        quantized: QuantizedWeight,
        levels: Literal["full", "ternary", "binary"],
        dtype: torch.dtype,
        rank: int,
        random: torch.Generator,
    ):
        """Start at the function of the export.

        Args:
            float_linear: As `GridLinear`.
            quantized: As `GridLinear`.
            levels: As `GridLinear`.
            dtype: As `GridLinear`.
            rank: Of the update.
            random: A CPU generator for A.
        """
        super().__init__(float_linear, quantized, levels, dtype)
        self.weight.requires_grad_(False)
        out, width = self.weight.shape
        bound = 1 / math.sqrt(width)  # Kaiming-uniform with a = sqrt(5), as released
        drawn = torch.rand(rank, width, generator=random) * 2 * bound - bound
        self.lora_a = nn.Parameter(drawn.to(self.weight.device))
        self.lora_b = nn.Parameter(self.weight.new_zeros(out, rank))

    def latent(self) -> Float[Tensor, "out in"]:
        """Return the merged weight before rounding, in levels."""
        with torch.autocast(self.weight.device.type, enabled=False):  # rounded as it is exported
            product = self.lora_b @ self.lora_a
        update = product.unflatten(1, (self.factors.shape[1], -1))
        return self.weight + (update / self.grid.scales[:, :, None]).flatten(1)
