"""A finished ternary linear: codes, one scale, and the gain of the RMSNorm before it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from normtweak_core.ternary.quantizers import absmean_scale, ternary_codes


@dataclass(frozen=True)
class TernaryLinear:
    """What a reader of the BitNet format computes with.

    ``y = int8(rms_norm(x)) @ codes.T / weight_scale + bias``: the stored scale divides.
    """

    codes: Int8[Tensor, "out in"]  # -1, 0, 1
    weight_scale: Float[Tensor, ""]  # 1 / mean|W|, float32, a number that the export dtype holds
    gain: Float[Tensor, " in"] | None  # of the RMSNorm before this linear; None: there is none
    bias: Float[Tensor, " out"] | None

    def dequantize(self) -> Float[Tensor, "out in"]:
        """Return the float32 weight that the codes stand for."""
        return self.codes.to(torch.float32) / self.weight_scale


def ternary_linear(
    weight: Float[Tensor, "out in"],
    gain: Float[Tensor, " in"] | None,
    bias: Float[Tensor, " out"] | None,
    dtype: torch.dtype,
) -> TernaryLinear:
    """Return the ternary linear of a latent weight, its scale rounded to the export dtype."""
    scale = absmean_scale(weight)
    return TernaryLinear(
        codes=ternary_codes(weight, scale).to("cpu", torch.int8),
        weight_scale=(1.0 / scale).to("cpu", dtype).to(torch.float32),
        gain=None if gain is None else gain.detach().float().cpu(),
        bias=None if bias is None else bias.detach().float().cpu(),
    )
