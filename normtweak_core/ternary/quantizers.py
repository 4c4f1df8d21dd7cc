"""Quantizers for training, and the gradients that pass straight through them.

Each quantizer returns the dequantized tensor, a float tensor whose values lie on the grid. A
forward pass uses it in the place of the latent one, and the gradient is handed to the latent
tensor as if nothing had been rounded (straight-through estimator, STE).

==========  ============================  =======================================================
name        levels of a weight            source
==========  ============================  =======================================================
absmean     {-1, 0, 1} * mean|W|          BitNet b1.58; one scale a tensor, or one a row
absmax      2**bits - 1 levels            seed 001 (`weight_quant`), rows; at 2 bits three levels,
                                          because round(w s) lies within the largest magnitude
binary      {-1, 1} * mean|W| of the row  BitNet (1 bit)
seq         see `stretched_levels`        ParetoQ: 1.58 and 2 bits, learned scale per row
lsq         2**bits levels                LSQ, ParetoQ: 3 and 4 bits, learned scale per row
==========  ============================  =======================================================
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-5  # smallest scale, in every published implementation
CLIP = 0.99  # ParetoQ keeps scaled weights inside, so that rounding cannot leave the levels
INT8_MAX = 127


def absmean_scale(weight: Float[Tensor, "out in"], per_row: bool = False) -> Tensor:
    """Return ``mean|W|`` in float32: shape [] for the whole tensor, [out, 1] per row."""
    magnitude = weight.detach().float().abs()
    scale = magnitude.mean(dim=1, keepdim=True) if per_row else magnitude.mean()
    return scale.clamp(min=EPSILON)


def ternary_codes(weight: Float[Tensor, "out in"], scale: Tensor) -> Float[Tensor, "out in"]:
    """Return ``clip(round(W / scale), -1, 1)``.

    Multiplies by the reciprocal, as the published code does: at ties the two can differ.
    """
    return (weight.detach().float() * (1.0 / scale)).round_().clamp_(-1, 1)


def absmean(weight: Float[Tensor, "out in"], per_row: bool = False) -> Float[Tensor, "out in"]:
    """Return the ternary weight of BitNet b1.58, dequantized.

    Source: BitNet b1.58 (arXiv 2402.17764), equations 1 to 3, as coded in every public port.

    Args:
        weight: Latent weight.
        per_row: One scale per output row instead of one for the tensor.
    """
    scale = absmean_scale(weight, per_row)
    return ternary_codes(weight, scale).mul_(scale).to(weight.dtype)


def absmax(weight: Float[Tensor, "out in"], bits: int) -> Float[Tensor, "out in"]:
    """Return the symmetric rounding of each row to multiples of ``max|w| / (2**(bits-1) - 1)``.

    At 2 bits that leaves three levels, -m, 0 and m: the code -2 exists and is never reached.

    Raises:
        ValueError: ``bits`` is not between 2 and 8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"absmax needs a width from 2 to 8 bits; found {bits}: use binary for 1")
    highest = 2 ** (bits - 1) - 1
    latent = weight.detach().float()
    inverse = highest / latent.abs().amax(dim=1, keepdim=True).clamp(min=EPSILON)
    return (latent * inverse).round_().clamp_(-highest - 1, highest).div_(inverse).to(weight.dtype)


def binary(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Return ``sign(W) * mean|W|`` per row; zero counts as positive, so that no third level is."""
    signs = torch.where(weight.detach() >= 0, 1.0, -1.0)
    return signs.mul_(absmean_scale(weight, per_row=True)).to(weight.dtype)


def int8_tokens(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """Return activations rounded to 8 bits, one scale per token: ``127 / max|x|``.

    Source: BitNet b1.58, and transformers' `BitLinear.activation_quant`, which always does this.
    """
    values = x.detach()
    scale = INT8_MAX / values.abs().amax(dim=-1, keepdim=True).clamp_(min=EPSILON)
    return (values * scale).round_().clamp_(-INT8_MAX - 1, INT8_MAX).div_(scale)


class _StraightThrough(torch.autograd.Function):
    """Forward ``latent + lam (rounded - latent)``, backward the gradient as it comes."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, rounded: Tensor, lam: float) -> Tensor:
        return rounded if lam == 1 else torch.lerp(latent, rounded, lam)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


def straight_through(latent: Tensor, rounded: Tensor, lam: float = 1.0) -> Tensor:
    """Return ``latent + lam * (rounded - latent)`` with the gradient of ``latent``.

    Args:
        latent: What is trained.
        rounded: Its quantized values.
        lam: Share of the quantization, from 0 (float) to 1.

    Source: the Hugging Face blog on 1.58-bit fine-tuning, whose lambda this is.
    """
    return latent if lam == 0 else _StraightThrough.apply(latent, rounded, lam)


def stretched_levels(bits: float | int) -> tuple[float, float]:
    """Return ``n`` and ``shift`` of ParetoQ's stretched elastic quantizer (SEQ).

    Levels are ``a (round(c n - shift) + shift) / n`` with c = clip(W/a, -0.99, 0.99): for 1.58 bits
    a * {-2/3, 0, 2/3}, for 2 bits a * {-3/4, -1/4, 1/4, 3/4}.

    Raises:
        ValueError: SEQ is not defined at this width.
    """
    if bits not in (1.58, 2):
        raise ValueError(f"seq is defined for 1.58 and 2 bits; found {bits}: use lsq for 3 and 4")
    return (1.5, 0.0) if bits == 1.58 else (2.0, 0.5)


class _Seq(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, bits: float | int) -> Tensor:
        n, shift = stretched_levels(bits)
        ratio = weight / scale
        levels = ((ratio.clamp(-CLIP, CLIP) * n - shift).round() + shift) / n
        ctx.save_for_backward(ratio, levels)
        ctx.numel, ctx.highest = weight.numel(), (n - shift) / n
        ctx.lead = 1.0  # 2**(bits-1) - 1, which is 1 at either width
        return levels * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        ratio, levels = ctx.saved_tensors
        below, above = ratio < -CLIP, ratio > CLIP
        slope = torch.where(below, -ctx.highest, levels - ratio)
        slope = torch.where(above, ctx.highest, slope)
        factor = 1.0 / math.sqrt(ctx.numel * ctx.lead)
        scale_gradient = (gradient * slope).sum(dim=1, keepdim=True) * factor
        return gradient * ~(below | above), scale_gradient, None


def seq(
    weight: Float[Tensor, "out in"], scale: Float[Tensor, "out 1"], bits: float | int
) -> Float[Tensor, "out in"]:
    """Return ParetoQ's stretched elastic quantization, with gradients for weight and scale.

    The gradient of a weight outside the clip is zero; that of the scale is damped by
    ``1 / sqrt(numel)``.

    Source: ParetoQ (arXiv 2502.02631), its released code.

    Raises:
        ValueError: ``bits`` is neither 1.58 nor 2.
    """
    stretched_levels(bits)
    return _Seq.apply(weight, scale, bits)


class _Lsq(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        ratio = weight / scale
        codes = ratio.round().clamp(low, high)
        ctx.save_for_backward(ratio, codes)
        ctx.low, ctx.high, ctx.numel = low, high, weight.numel()
        return codes * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        ratio, codes = ctx.saved_tensors
        inside = (ratio >= ctx.low) & (ratio <= ctx.high)
        slope = torch.where(inside, codes - ratio, codes)
        factor = 1.0 / math.sqrt(ctx.numel * ctx.high)
        scale_gradient = (gradient * slope).sum(dim=1, keepdim=True) * factor
        return gradient * inside, scale_gradient, None, None


def lsq(
    weight: Float[Tensor, "out in"], scale: Float[Tensor, "out 1"], bits: int
) -> Float[Tensor, "out in"]:
    """Return learned-step-size quantization, with gradients for weight and scale.

    Levels are ``scale * {-2**(bits-1), .., 2**(bits-1) - 1}``.

    Source: LSQ (arXiv 1902.08153), equations 1 to 3; ParetoQ uses it at 3 and 4 bits.

    Raises:
        ValueError: ``bits`` is below 2.
    """
    if bits < 2:
        raise ValueError(f"lsq needs at least 2 bits; found {bits}: use binary")
    return _Lsq.apply(weight, scale, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def initial_scale(weight: Float[Tensor, "out in"], bits: float | int) -> Float[Tensor, "out 1"]:
    """Return the scale per row that ParetoQ starts from at a width.

    ``max|W|`` for 1.58 and 2 bits, ``mean|W|`` for 1 bit, ``max|W| / (2**(bits-1) - 1)`` above.
    """
    magnitude = weight.detach().float().abs()
    if bits == 1:
        return magnitude.mean(dim=1, keepdim=True).clamp(min=EPSILON)
    largest = magnitude.amax(dim=1, keepdim=True).clamp(min=EPSILON)
    return largest if bits in (1.58, 2) else largest / (2 ** (int(bits) - 1) - 1)
