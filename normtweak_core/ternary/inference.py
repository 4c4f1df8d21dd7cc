"""A ternary linear as readers of the BitNet format compute it, in float32."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from normtweak_core.ternary.quantizers import EPSILON, INT8_MAX
from normtweak_core.ternary.weight import TernaryLinear


class TernaryInference(nn.Module):
    """``y = int8(rms_norm(x)) @ codes.T / (int8 scale * weight_scale) + bias``.

    The numbers of transformers' ``BitLinear`` in float32, operation by operation: sums of int8
    times ternary are whole numbers that float32 holds. Here the codes are kept as a float32 matrix,
    so that one matrix product is all there is to compute. The output has the dtype of the input.
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
        values = x.to(torch.float32)
        if self.gain is not None:
            mean_square = values.square().mean(dim=-1, keepdim=True)
            values = self.gain * (values * torch.rsqrt(mean_square + self.rms_norm_eps))
        scale = INT8_MAX / values.abs().amax(dim=-1, keepdim=True).clamp_(min=EPSILON)
        rounded = (values * scale).round_().clamp_(-INT8_MAX - 1, INT8_MAX)
        y = linear(rounded, self.codes) / (scale * self.weight_scale)
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype)
