"""A ternary linear as readers of the BitNet format compute it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from normtweak_core.ternary.quantizers import EPSILON, INT8_MAX
from normtweak_core.ternary.weight import TernaryLinear


class TernaryInference(nn.Module):
    """``y = int8(rms_norm(x)) @ codes.T / (int8 scale * weight_scale) + bias``.

    The numbers of transformers' ``BitLinear``, operation by operation, in the dtype of the input:
    its norm computes in float32, all else in that dtype, the product of the two scales too. Sums of
    int8 times ternary are whole numbers that float32 holds; here they are rounded once. The codes
    are kept as a float32 matrix, so that one matrix product is all there is to compute.
    """

    codes: Tensor
    weight_scale: Tensor
    gain: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: TernaryLinear, rms_norm_eps: float):
        """Take over a finished linear.

        Args:
            layer: Codes, scale, gain and bias.
            rms_norm_eps: Added to the mean square; unused without a gain.
        """
        super().__init__()
        self.out_features, self.in_features = layer.codes.shape
        self.rms_norm_eps = rms_norm_eps
        self.register_buffer("codes", layer.codes.to(torch.float32))
        self.register_buffer("weight_scale", layer.weight_scale)
        self.register_buffer("gain", layer.gain)
        self.register_buffer("bias", layer.bias)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return what the linear makes of ``x``."""
        rounded, scale = self.quantized(x)
        sums = linear(rounded, self.codes.float()).to(x.dtype)
        y = sums / (self.weight_scale.to(x.dtype) * scale)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def quantized(
        self, x: Float[Tensor, "*batch in"]
    ) -> tuple[Float[Tensor, "*batch in"], Float[Tensor, "*batch 1"]]:
        """Return the int8 numbers of ``x``, in float32, and their scale, in the dtype of ``x``."""
        if self.gain is not None:
            values = x.to(torch.float32)
            mean_square = values.square().mean(dim=-1, keepdim=True)
            values = values * torch.rsqrt(mean_square + self.rms_norm_eps)
            x = self.gain.to(x.dtype) * values.to(x.dtype)
        scale = INT8_MAX / x.abs().amax(dim=-1, keepdim=True).clamp_(min=EPSILON)
        rounded = (x * scale).round_().clamp_(-INT8_MAX - 1, INT8_MAX).to(torch.float32)
        # Zero times an infinite scale is NaN, which the reader's conversion to int8 makes zero.
        return rounded.nan_to_num_(nan=0.0), scale
