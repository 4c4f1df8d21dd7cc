"""Moments of channels against exact arithmetic."""

import statistics
from fractions import Fraction

import pytest
import torch

from normtweak_core.quantization.moments import ChannelMoments, RunningMoments


def gathered(pieces) -> ChannelMoments:
    running = RunningMoments()
    for piece in pieces:
        running.add(piece)
    return running.result()


def exact(tokens: torch.Tensor) -> tuple[list[float], list[float]]:
    """Mean and variance of each channel in rational numbers."""
    channels = [[Fraction(value) for value in column] for column in tokens.double().T.tolist()]
    return (
        [float(statistics.mean(channel)) for channel in channels],
        [float(statistics.pvariance(channel)) for channel in channels],
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [[50], [1] * 50, [1, 2, 3, 5, 8, 13, 18]])
def test_streaming_agrees_with_exact_arithmetic(seeded, dtype, sizes):
    tokens = (torch.randn(50, 7, generator=seeded(1)) * 3 + 2).to(dtype)
    found = gathered(tokens.split(sizes))
    mean, variance = exact(tokens)
    assert found.mean.tolist() == pytest.approx(mean, rel=1e-13)
    assert found.variance.tolist() == pytest.approx(variance, rel=1e-13)
    assert found.mean.dtype == found.variance.dtype == torch.float64


def test_a_small_variance_beside_a_large_mean_is_kept(seeded):
    tokens = 1e6 + 1e-3 * torch.randn(64, 3, generator=seeded(2), dtype=torch.float64)
    found = gathered(tokens.split(8))
    assert found.variance.tolist() == pytest.approx(exact(tokens)[1], rel=1e-6)
    of_squares = tokens.square().mean(dim=0) - tokens.mean(dim=0).square()  # what it avoids
    assert of_squares.tolist() != pytest.approx(exact(tokens)[1], rel=0.1)


def test_moments_by_hand():
    found = gathered([torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 5.0], [5.0, 5.0]])])
    assert found.mean.tolist() == [3.0, 5.0]
    assert found.variance.tolist() == pytest.approx([8 / 3, 0.0])


def test_leading_dimensions_are_tokens(seeded):
    hidden = torch.randn(4, 5, 6, generator=seeded(3))
    whole, flat = gathered([hidden]), gathered([hidden.reshape(20, 6)])
    assert torch.equal(whole.mean, flat.mean)
    assert torch.equal(whole.variance, flat.variance)


def test_moments_of_nothing_are_refused():
    with pytest.raises(ValueError, match="moments need at least one token; none was added"):
        RunningMoments().result()
