"""The linear layer of a ternary model in training: extra RMSNorm, int8 input, ternary weight."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from normtweak_core.ternary.quantizers import absmean, int8_tokens, straight_through


class _Normalize(torch.autograd.Function):
    """``x (ramp / rms(x) + (1 - ramp) / level)`` in one pass over x, and its exact gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, ramp: float, level: float) -> Tensor:
        values = x.float()
        inverse = values.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(values, inverse)
        ctx.ramp, ctx.rest = ramp, (1 - ramp) / level
        factor = inverse if ramp == 1 else inverse * ramp + ctx.rest
        return (values * factor).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        values, inverse = ctx.saved_tensors
        upstream = gradient.float()
        # d(x / rms) = dx / rms - x (x . dx) / (width rms**3)
        inner = (upstream * values).mean(dim=-1, keepdim=True)
        through = upstream * (inverse * ctx.ramp + ctx.rest)
        through.addcmul_(values, inner * inverse.pow(3), value=-ctx.ramp)
        return through.to(gradient.dtype), None, None, None


def normalize(
    x: Float[Tensor, "*batch width"], eps: float, ramp: float, level: float
) -> Float[Tensor, "*batch width"]:
    """Return ``x`` divided by its root mean square; with ``ramp`` 0 by the constant ``level``.

    Args:
        x: Activations.
        eps: Added to the mean square.
        ramp: Share of the norm, from 0 to 1; between, the two divisions are blended.
        level: Root mean square of ``x`` on calibration text.
    """
    return _Normalize.apply(x, eps, ramp, level)


class SharedInput(nn.Module):
    """What the linears that read one tensor have in common: the norm, its gain, the rounding.

    A forward pass normalizes (and with one gain, rounds) the tensor once, for the linear that is
    called first; the others find it here.
    """

    def __init__(self, width: int, gain: Tensor | None, eps: float, level: float, norm: bool):
        """Make the norm of a tensor ``width`` wide.

        Args:
            width: Features of the tensor.
            gain: Initial gain shared by all its linears; None: none, or each has its own.
            eps: Of the norm.
            level: Root mean square of the tensor on calibration text.
            norm: False for no norm at all.
        """
        super().__init__()
        self.width, self.eps, self.level, self.norm = width, eps, level, norm
        self.gain = None if gain is None else nn.Parameter(gain)
        self.lam, self.ramp, self.activation_bits = 0.0, 1.0, 8
        self._seen: tuple[Tensor, int, Tensor] | None = None

    def forward(self, x: Tensor, own_gain: Tensor | None) -> Tensor:
        """Return what a linear multiplies with: ``x`` normalized, scaled and rounded."""
        seen = self._seen
        if seen is not None and seen[0] is x and seen[1] == x._version:
            shared = seen[2]
        else:
            shared = normalize(x, self.eps, self.ramp, self.level) if self.norm else x
            if self.gain is not None:
                shared = shared * self.gain
            if own_gain is None:
                shared = self.rounded(shared)
            self._seen = (x, x._version, shared)
        return shared if own_gain is None else self.rounded(shared * own_gain)

    def rounded(self, x: Tensor) -> Tensor:
        """Return ``x`` with its 8-bit rounding blended in by lambda."""
        if self.activation_bits is None or self.lam == 0:
            return x
        return straight_through(x, int8_tokens(x), self.lam)

    def forget(self) -> None:
        """Let go of the last tensor; to be called after each forward pass."""
        self._seen = None


class TrainedLinear(nn.Module):
    """A linear whose weight is latent: it multiplies with the ternary one, blended by lambda."""

    def __init__(self, weight: Tensor, bias: Tensor | None, shared: SharedInput, gain: bool):
        """Take over weight and bias.

        Args:
            weight: Latent weight [out, in]; becomes a parameter.
            bias: Bias [out] or None.
            shared: What the linears that read the same tensor have in common.
            gain: Whether this linear has a gain of its own, which starts as the shared one.
        """
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.gain = nn.Parameter(torch.ones(weight.shape[1])) if gain else None
        self._shared = [shared]  # a list: the norm is registered once, by its group
        self.lam = 0.0

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.weight.shape[0]

    @property
    def shared(self) -> SharedInput:
        """What the linears that read the same tensor have in common."""
        return self._shared[0]

    def full_gain(self) -> Tensor | None:
        """Return the gain of the norm before this linear; None without a norm."""
        if not self.shared.norm:
            return None
        gains = [gain for gain in (self.shared.gain, self.gain) if gain is not None]
        if not gains:
            return torch.ones(self.in_features)
        return gains[0] if len(gains) == 1 else gains[0] * gains[1]

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return ``shared(x) @ W_lambda.T + bias``."""
        rounded = absmean(self.weight) if self.lam > 0 else self.weight
        weight = straight_through(self.weight, rounded, self.lam)
        return linear(self.shared(x, self.gain), weight, self.bias)
