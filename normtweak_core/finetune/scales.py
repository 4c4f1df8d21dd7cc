"""A linear whose codes stay and whose scales go on learning.

Of its weight only the codes are kept, a byte each; the weight itself is made of them for each
product, on the way there and again on the way back. So a model whose scales are trained takes less
memory than the dense one.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.quantization.grid import round_scale
from normtweak_core.quantization.weight import QuantizedWeight


class ScaleLinear(nn.Module):
    """Multiplies with a quantized weight; learns a factor of each scale."""

    def __init__(self, linear: nn.Module, quantized: QuantizedWeight, dtype: torch.dtype):
        """Start at the function of the export.

        Args:
            linear: What was quantized; its bias is kept and stays as it is.
            quantized: What it became.
            dtype: The export dtype, to which scales are rounded in every pass.
        """
        super().__init__()
        device, self._dtype = linear.weight.device, dtype
        self._computes_in = linear.weight.dtype
        bias = None if linear.bias is None else linear.bias.detach()
        # Columns are taken group by group, and what they are multiplied with as well.
        g_idx = quantized.g_idx
        order = None if g_idx is None else torch.argsort(g_idx, stable=True).to(device)
        codes = quantized.codes.to(device)
        for name, held in (
            ("order", order),
            ("codes", codes if order is None else codes[:, order]),
            ("zeros", quantized.zeros.to(device)),
            ("start", quantized.scales.to(device, torch.float32)),
            ("bias", bias),
        ):
            self.register_buffer(name, held, persistent=False)
        self.factors = nn.Parameter(torch.ones_like(self.start))

    def scales(self) -> Float[Tensor, "out groups"]:
        """Return the scales as they stand, as the export holds them."""
        return _rounded(self.start, self.factors.detach(), self._dtype).cpu()

    @torch.no_grad()
    def dense(self) -> nn.Linear:
        """Return a plain linear of the same function."""
        weight = _weight(_levels(self.codes, self.zeros), self.scales().to(self.codes.device))
        if self.order is not None:
            weight = weight[:, torch.argsort(self.order)]
        rows, columns = weight.shape
        made = nn.Linear(columns, rows, self.bias is not None, "meta", self._computes_in)
        made.weight = nn.Parameter(weight.to(self._computes_in), requires_grad=False)
        if self.bias is not None:
            made.bias = nn.Parameter(self.bias, requires_grad=False)
        return made

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return ``x W^T + b``."""
        scales = self.start * self.factors
        rounded = _rounded(self.start, self.factors.detach(), self._dtype)
        scales = rounded + (scales - scales.detach())  # the rounding passed straight through (STE)
        x = x if self.order is None else x[..., self.order]
        product = _Product.apply(x, scales, self.codes, self.zeros)
        return product if self.bias is None else product + self.bias


def _rounded(start: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """Return rounded scales; those of other tools may be negative, and stay so."""
    return torch.copysign(round_scale(start.abs() * factors, dtype), start)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: Tensor, codes: Tensor, zeros: Tensor) -> Tensor:
        ctx.save_for_backward(x, scales, codes, zeros)
        levels = _levels(codes, zeros)
        return x @ _weight(levels, scales).to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, scales, codes, zeros = ctx.saved_tensors
        levels = _levels(codes, zeros)
        of_x = gradient @ _weight(levels, scales).to(gradient.dtype)
        of_weight = gradient.flatten(0, -2).T @ x.flatten(0, -2)
        of_scales = (of_weight.float().unflatten(1, levels.shape[1:]) * levels).sum(dim=2)
        return of_x, of_scales, None, None


def _levels(codes: Tensor, zeros: Tensor) -> Float[Tensor, "out groups width"]:
    return codes.unflatten(1, (zeros.shape[1], -1)).float() - zeros.float()[:, :, None]


def _weight(
    levels: Float[Tensor, "out groups width"], scales: Float[Tensor, "out groups"]
) -> Float[Tensor, "out in"]:
    return (levels * scales[:, :, None]).flatten(1)
