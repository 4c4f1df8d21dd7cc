"""Polynomials fitted to seven random points, scaled to the unit square, a chunk of them at a time.

Source: seed 001. Points are uniform in the unit square, the fit is the least-squares polynomial.
The source fits one sample after the other, 2 million of them in six minutes; here a chunk is fitted
with Forsythe's orthogonal polynomials (J. SIAM 5, 1957), whose recurrence runs over the degree.

Symbols: t abscissas on [-1, 1], y ordinates; p_k monic polynomials, orthogonal on the t of a
sample; a_k, b_k their recurrence; c_k the part of y along p_k.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from normtweak_core.randomness import generator

POINTS = 7  # of a sample, as in the source
GRID = 100  # abscissas at which a fit is given, as in the source
CHUNK = 2048  # samples fitted at once: their values on the grid are 1.6 MB, which caches hold


@dataclass(frozen=True)
class Samples:
    """Random points, and the polynomials fitted to them."""

    inputs: Float[Tensor, "samples 14"]  # abscissas in increasing order, then ordinates
    curves: Float[Tensor, "samples 100"]  # ordinates on the even grid from 0 to 1

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.inputs)


def make_samples(num_samples: int, degree: int, seed: int, purpose: str) -> Samples:
    """Return samples in float32; a larger number begins with the same ones.

    Args:
        num_samples: How many.
        degree: Of the polynomials; 6 passes through all points.
        seed: Of the recipe.
        purpose: Samples of different purposes have nothing in common.

    Raises:
        ValueError: The degree is not between 1 and 6.
    """
    inputs = torch.empty(num_samples, 2 * POINTS)
    curves = torch.empty(num_samples, GRID)
    for chunk, start in enumerate(range(0, num_samples, CHUNK)):
        end = min(start + CHUNK, num_samples)
        random = generator(seed, f"polynomial {purpose} samples", chunk)
        points = torch.rand(CHUNK, 2, POINTS, generator=random, dtype=torch.float64)
        x, y = points[: end - start].unbind(1)
        x, y, fitted = normalised_fit(x.sort(dim=1).values, y, degree)
        inputs[start:end, :POINTS], inputs[start:end, POINTS:] = x, y
        curves[start:end] = fitted
    return Samples(inputs, curves)


def normalised_fit(
    x: Float[Tensor, "samples points"], y: Float[Tensor, "samples points"], degree: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return points and fit, scaled so that the fit fills the unit square.

    Args:
        x: Abscissas in increasing order, no two of a sample equal.
        y: Ordinates.
        degree: Of the fit.

    Returns:
        Abscissas from 0 to 1; ordinates, scaled and shifted as the fit is; the fit on the even grid
        of 100 abscissas, its least value there 0 and its largest 1.

    Raises:
        ValueError: The degree is not between 1 and one less than the number of points.
    """
    if not 1 <= degree < x.shape[1]:
        raise ValueError(
            f"{x.shape[1]} points take a polynomial of degree 1 to {x.shape[1] - 1}; found {degree}"
        )
    left, right = x[:, :1], x[:, -1:]
    t = (2 * x - left - right) / (right - left)
    coefficients = fit_coefficients(t, y, degree)
    fitted = coefficients @ _powers(degree, x.dtype)  # (samples, grid)
    low, high = fitted.aminmax(dim=1, keepdim=True)
    return (t + 1) / 2, (y - low) / (high - low), (fitted - low) / (high - low)


def fit_coefficients(
    t: Float[Tensor, "samples points"], y: Float[Tensor, "samples points"], degree: int
) -> Float[Tensor, "samples coefficients"]:
    """Return the least-squares polynomial of every sample, lowest power first.

    Source: Forsythe 1957. Each part of y is taken from what the earlier ones left of it, which
    keeps the fit exact where two points nearly coincide.
    """
    samples = len(t)
    p, before = torch.ones_like(t), torch.zeros_like(t)
    power = torch.zeros(samples, degree + 1, dtype=t.dtype)  # coefficients of p
    power[:, 0] = 1
    power_before = torch.zeros_like(power)
    found = torch.zeros_like(power)
    rest, norm_before = y.clone(), None
    for k in range(degree + 1):
        norm = p.square().sum(dim=1, keepdim=True)
        c = (rest * p).sum(dim=1, keepdim=True) / norm
        rest -= c * p
        found += c * power
        if k == degree:
            break
        a = (t * p.square()).sum(dim=1, keepdim=True) / norm
        b = 0 if norm_before is None else norm / norm_before
        p, before = (t - a) * p - b * before, p
        raised = torch.nn.functional.pad(power[:, :-1], (1, 0))  # times t
        power, power_before = raised - a * power - b * power_before, power
        norm_before = norm
    return found


def _powers(degree: int, dtype: torch.dtype) -> Tensor:
    """Return the powers 0 to `degree` of the grid on [-1, 1], a row each."""
    grid = torch.linspace(-1, 1, GRID, dtype=dtype)
    return torch.stack([grid**k for k in range(degree + 1)])


def grid() -> Float[Tensor, "100"]:
    """Return the abscissas of the curves: evenly from 0 to 1."""
    return torch.linspace(0, 1, GRID)
