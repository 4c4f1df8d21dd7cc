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


@dataclass(frozen=True)
class Drift:
    """Difference ``x_q - x_f`` over all tokens behind one block."""

    mean: float  # over tokens and channels; opposite signs cancel
    mean_abs: float  # mean over channels of |mean over tokens|
    relative_norm: float  # ||x_q - x_f|| / ||x_f||


class DriftAccumulator:
    """Sums of ``x_q - x_f`` over batches, in float64."""

    def __init__(self) -> None:
        self._tokens = 0
        self._delta: Tensor | None = None  # (hidden,)
        self._delta_squared = 0.0
        self._float_squared = 0.0

    def add(
        self,
        quantized: Float[Tensor, "*tokens hidden"],
        reference: Float[Tensor, "*tokens hidden"],
    ) -> None:
        """Count one batch of both streams; neither is modified.

        Raises:
            NonFiniteError: A hidden state of either stream is NaN or infinite.
        """
        x_f = reference.double()
        delta = (quantized.double() - x_f).reshape(-1, x_f.shape[-1])
        delta_squared, float_squared = delta.square().sum().item(), x_f.square().sum().item()
        if not math.isfinite(delta_squared + float_squared):
            raise NonFiniteError(
                "Hidden states must be finite, found NaN or infinity in the stream behind a block. "
                "Check the weights of the model, or run it in a wider dtype."
            )
        self._tokens += len(delta)
        self._delta = delta.sum(0) + (0 if self._delta is None else self._delta)
        self._delta_squared += delta_squared
        self._float_squared += float_squared

    def delta_mean(self) -> Float64[Tensor, " hidden"]:
        """Return the mean of ``x_q - x_f`` over tokens, per channel."""
        assert self._delta is not None, "add() comes before delta_mean()"
        return self._delta / self._tokens

    def result(self) -> Drift:
        """Return the drift over everything added so far.

        Raises:
            NonFiniteError: The float stream is zero everywhere, so nothing is relative to it.
        """
        delta_mean = self.delta_mean()
        if self._float_squared == 0:
            raise NonFiniteError(
                "Drift is measured relative to the float stream, which is zero everywhere. "
                "Check the weights of the float model."
            )
        return Drift(
            mean=delta_mean.mean().item(),
            mean_abs=delta_mean.abs().mean().item(),
            relative_norm=math.sqrt(self._delta_squared / self._float_squared),
        )


def delta_mean(
    quantized: Float[Tensor, "*tokens hidden"], reference: Float[Tensor, "*tokens hidden"]
) -> Float64[Tensor, " hidden"]:
    """Return the mean of ``x_q - x_f`` over tokens, per channel."""
    return _accumulate(quantized, reference).delta_mean()


def drift(
    quantized: Float[Tensor, "*tokens hidden"], reference: Float[Tensor, "*tokens hidden"]
) -> Drift:
    """Return the drift between two whole streams held in memory."""
    return _accumulate(quantized, reference).result()


@torch.no_grad()
def _accumulate(
    quantized: Float[Tensor, "*tokens hidden"], reference: Float[Tensor, "*tokens hidden"]
) -> DriftAccumulator:
    """Add one leading slice at a time, so that only a slice is ever held in float64."""
    sums = DriftAccumulator()
    if quantized.dim() < 3:
        sums.add(quantized, reference)
        return sums
    for x_q, x_f in zip(quantized, reference, strict=True):
        sums.add(x_q, x_f)
    return sums
