"""Means over evaluation windows with their standard errors, and the results built from them.

The sampling unit is the window, not the token: tokens of one window depend on each other, so their
number would promise a precision that is not there. All windows have the same length, hence the mean
over tokens is the mean of the window means ``m_1 .. m_n`` and its standard error is
``std(m, ddof=1) / sqrt(n)``. Perplexity is ``exp`` of a mean; its error follows by the delta
method, ``exp(mean) * stderr(mean)``. Windows cut from one long document are neighbours, so even
this is a lower bound there.
"""

import math

from pydantic import BaseModel

from normtweak_core.evaluate.metric import Metric


class Estimate(BaseModel, frozen=True):
    """A mean over windows; the standard error is None for a single window."""

    mean: float
    stderr: float | None

    @classmethod
    def of(cls, windows: list[float]) -> "Estimate":
        """Return the mean of one value per window, and its standard error."""
        count = len(windows)
        mean = math.fsum(windows) / count
        if count == 1:
            return cls(mean=mean, stderr=None)
        variance = math.fsum((value - mean) ** 2 for value in windows) / (count - 1)
        return cls(mean=mean, stderr=math.sqrt(variance / count))

    def exp(self) -> "Estimate":
        """Return ``exp`` of this mean, its error by the delta method."""
        value = math.exp(self.mean)
        return Estimate(mean=value, stderr=None if self.stderr is None else value * self.stderr)


class FloatResult(BaseModel, frozen=True):
    """How well one model predicts the windows; JSON round trips keep every bit."""

    tokens: int  # predicted tokens: windows * (length - 1)
    window_nll: list[float]  # nats per predicted token, one mean per window

    @property
    def nll(self) -> Estimate:
        """Mean negative log-likelihood per predicted token, in nats."""
        return Estimate.of(self.window_nll)

    @property
    def perplexity(self) -> Estimate:
        """``exp`` of the mean negative log-likelihood."""
        return self.nll.exp()

    def metrics(self, name: str = "float") -> dict[str, float]:
        """Return flat metric names and values, such as ``perplexity/float``."""
        return {
            **named(f"perplexity/{name}", self.perplexity),
            **named(f"nll/{name}", self.nll),
            "tokens": float(self.tokens),
            "windows": float(len(self.window_nll)),
        }


class Comparison(BaseModel, frozen=True):
    """A quantized model beside the float model, on the same tokens of the same windows."""

    float_result: FloatResult
    quantized_result: FloatResult
    window_kl: list[float]  # KL(float || quantized), nats per token, one mean per window
    window_kl_reverse: list[float]  # KL(quantized || float), the same way
    window_agreement: list[float]  # share of tokens where both models rank the same token first

    @property
    def kl(self) -> Estimate:
        """Mean KL divergence of the quantized from the float model, nats per token."""
        return Estimate.of(self.window_kl)

    @property
    def kl_reverse(self) -> Estimate:
        """Mean KL divergence of the float from the quantized model, nats per token."""
        return Estimate.of(self.window_kl_reverse)

    @property
    def top1_agreement(self) -> Estimate:
        """Share of tokens where both models rank the same token first."""
        return Estimate.of(self.window_agreement)

    @property
    def nll_difference(self) -> Estimate:
        """Quantized minus float negative log-likelihood, paired by window."""
        pairs = zip(self.quantized_result.window_nll, self.float_result.window_nll, strict=True)
        return Estimate.of([quantized - float_ for quantized, float_ in pairs])

    def metrics(self) -> dict[str, float]:
        """Return flat metric names and values; a standard error that is undefined is left out."""
        return {
            **self.float_result.metrics("float"),
            **self.quantized_result.metrics("quantized"),
            **named("perplexity/ratio", self.nll_difference.exp()),
            **named("nll_difference", self.nll_difference, "/mean"),
            **named("kl", self.kl, "/mean"),
            **named("kl_reverse", self.kl_reverse, "/mean"),
            **named("top1_agreement", self.top1_agreement),
        }


def named(name: str, estimate: Estimate, mean_suffix: str = "") -> dict[str, float]:
    """Return a mean under its name and, where there is one, its standard error beside it."""
    return Metric(name, estimate.mean, estimate.stderr, flat=f"{name}{mean_suffix}").named()
