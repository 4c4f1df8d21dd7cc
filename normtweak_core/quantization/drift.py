"""How far the quantized stream has drifted from the float stream behind a block.

Source: the diagnostic of Li et al. 2023, Norm Tweaking, https://arxiv.org/abs/2309.02784: the mean
difference between quantized and float outputs, block by block, which accumulates with depth.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from normtweak_core.errors import NonFiniteError
from normtweak_core.quantization.moments import ChannelMoments, RunningMoments

TINY = 1e-20  # in the place of a token's |target|^2 where that is zero


@dataclass(frozen=True)
class Drift:
    """Both streams behind one block, channel by channel, over the same tokens."""

    x_f: ChannelMoments
    x_q: ChannelMoments
    square_error: Float64[Tensor, " channels"]  # mean over tokens of (x_q - x_f)^2

    @property
    def relative_norm(self) -> float:
        """|x_q - x_f| / |x_f|."""
        reference = (self.x_f.mean.square() + self.x_f.variance).sum()
        return math.sqrt((self.square_error.sum() / reference).item())

    @property
    def mean_shift(self) -> float:
        """Mean over channels of |mean over tokens of x_q - x_f|."""
        return (self.x_q.mean - self.x_f.mean).abs().mean().item()

    def tensors(self) -> dict[str, Float64[Tensor, " channels"]]:
        """Return what is stored of it."""
        return {
            "mean_float": self.x_f.mean,
            "variance_float": self.x_f.variance,
            "mean": self.x_q.mean,
            "variance": self.x_q.variance,
            "square_error": self.square_error,
        }


class RunningDrift:
    """Gathers the drift of tokens that come in pieces, in float64."""

    def __init__(self) -> None:
        self._x_f, self._x_q = RunningMoments(), RunningMoments()
        self._error, self._tokens = torch.zeros(()), 0

    def add(
        self, x_q: Float[Tensor, "*tokens channels"], x_f: Float[Tensor, "*tokens channels"]
    ) -> None:
        """Take in what both streams hold of the same tokens."""
        x_q, x_f = x_q.detach().double().flatten(0, -2), x_f.detach().double().flatten(0, -2)
        self._x_f.add(x_f)
        self._x_q.add(x_q)
        self._error = self._error + (x_q - x_f).square().sum(dim=0).cpu()
        self._tokens += len(x_f)

    def result(self) -> Drift:
        """Return the drift over all tokens so far.

        Raises:
            NonFiniteError: A hidden state is NaN or infinite, or the float stream is zero
                everywhere, so that nothing is relative to it.
            ValueError: No tokens were added.
        """
        found = Drift(self._x_f.result(), self._x_q.result(), self._error / self._tokens)
        if not all(tensor.isfinite().all() for tensor in found.tensors().values()):
            raise NonFiniteError(
                "hidden states must be finite; found NaN or infinity in the stream behind a block: "
                "check the weights of the model, or run it in a wider dtype"
            )
        if not (found.x_f.mean.any() or found.x_f.variance.any()):
            raise NonFiniteError(
                "drift is measured relative to the float stream, which is zero everywhere: check "
                "the weights of the float model"
            )
        return found


@torch.no_grad()
def drift(
    x_q: Float[Tensor, "samples seq hidden"], x_f: Float[Tensor, "samples seq hidden"]
) -> Drift:
    """Return the drift between two streams, a window at a time.

    Raises:
        NonFiniteError: As `RunningDrift.result`.
    """
    running = RunningDrift()
    for quantized, wanted in zip(x_q, x_f, strict=True):
        running.add(quantized, wanted)
    return running.result()


def token_distance(
    output: Float[Tensor, "samples seq hidden"], target: Float[Tensor, "samples seq hidden"]
) -> Float[Tensor, ""]:
    """Return the mean over tokens of |output - target|^2 / |target|^2, in float32.

    Token by token, as the norms of the blocks behind see it: over all tokens together, the few
    with very large norms would decide.
    """
    wanted = target.to(output.device).float()
    size = wanted.square().sum(-1).clamp(min=TINY)
    return ((output.float() - wanted).square().sum(-1) / size).mean()
