"""A quantized weight matrix: integer codes on a grid of scales and zeros."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes of one linear: ``weight = scale * (code - zero)``, scale and zero per row and group.

    Scales are float32 numbers that the export dtype holds exactly, so the product below is exact
    in float32 and every reader finds the same weight, rounded once to its own dtype.
    """

    codes: UInt8[Tensor, "out in"]  # 0 .. 2**bits - 1
    scales: Float[Tensor, "out groups"]  # float32, positive; those of other tools may be negative
    zeros: UInt8[Tensor, "out groups"]  # code units; 2**(bits-1) everywhere when symmetric
    bits: int
    group_size: int | None  # None: one group, the whole row
    symmetric: bool
    activation_bits: int | None = None  # what the linear reads is rounded to; None: float
    # Group of each column, where those of a group do not follow each other: other tools sort
    # columns before they group them. Each has equally many.
    g_idx: Int32[Tensor, " in"] | None = None

    def dequantize(self) -> Float[Tensor, "out in"]:
        """Return the float32 weight that the codes stand for."""
        width = self.group_size or self.codes.shape[1]
        if self.g_idx is None:
            scales = self.scales.repeat_interleave(width, dim=1)
            zeros = self.zeros.repeat_interleave(width, dim=1)
        else:
            groups = self.g_idx.long()
            scales, zeros = self.scales[:, groups], self.zeros[:, groups]
        return scales * (self.codes.to(torch.float32) - zeros.to(torch.float32))


def with_rounded_inputs(layers: Mapping[str, QuantizedWeight]) -> list[str]:
    """Return the names of the linears that read rounded activations."""
    return [name for name, weight in layers.items() if weight.activation_bits is not None]
