"""Mean and variance of every channel of a stream, gathered in one pass."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor


@dataclass(frozen=True)
class ChannelMoments:
    """Statistics of each channel over tokens; the variance is divided by the number of tokens."""

    mean: Float64[Tensor, " channels"]
    variance: Float64[Tensor, " channels"]


class RunningMoments:
    """Gathers the moments of tokens that come in pieces, in float64.

    Source: Chan, Golub and LeVeque 1979, Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances. Sums of squares would lose the variance of a channel whose mean is large
    beside it, as that of a massive activation is.
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._mean = self._deviations = torch.zeros(())

    def add(self, hidden: Float[Tensor, "*tokens channels"]) -> None:
        """Take in some tokens; at least one."""
        values = hidden.detach().flatten(0, -2).double()
        variance, mean = torch.var_mean(values, dim=0, correction=0)
        variance, mean = variance.cpu(), mean.cpu()
        before, new = self._tokens, len(values)
        self._tokens = before + new
        shift = mean - self._mean
        self._mean = self._mean + shift * (new / self._tokens)
        self._deviations = (
            self._deviations + variance * new + shift.square() * (before * new / self._tokens)
        )

    def result(self) -> ChannelMoments:
        """Return the moments of all tokens so far.

        Raises:
            ValueError: There were none.
        """
        if not self._tokens:
            raise ValueError("moments need at least one token; none was added")
        return ChannelMoments(self._mean, self._deviations / self._tokens)
