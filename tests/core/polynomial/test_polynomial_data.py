"""The fits against numpy's, one by one; what scaling promises; the seeds."""

import numpy
import pytest
import torch

from normtweak_core.polynomial import data
from normtweak_core.polynomial.data import GRID, POINTS, grid, make_samples, normalised_fit


def draw(seeded, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    points = torch.rand(2, samples, POINTS, generator=seeded(4), dtype=torch.float64)
    return points[0].sort(dim=1).values, points[1]


@pytest.mark.parametrize("degree", [1, 3, 6])
def test_a_fit_is_what_numpy_finds_for_every_sample_alone(seeded, degree):
    x, y = draw(seeded, 300)
    _, points, curves = normalised_fit(x, y, degree)
    for index in range(len(x)):
        one = x[index].numpy()
        scaled = (one - one[0]) / (one[-1] - one[0])
        # On [-1, 1]: numpy's powers of [0, 1] alone would lose half of the digits.
        fit = numpy.polyfit(2 * scaled - 1, y[index].numpy(), degree, rcond=1e-300)
        values = numpy.polyval(fit, numpy.linspace(-1, 1, GRID))
        low, high = values.min(), values.max()
        expected = (values - low) / (high - low)
        assert numpy.abs(curves[index].numpy() - expected).max() < 1e-9
        expected = (y[index].numpy() - low) / (high - low)
        assert points[index].numpy() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_fit_fills_the_unit_square(seeded):
    x, _, curves = normalised_fit(*draw(seeded, 200), 4)
    assert x[:, 0].abs().max() == 0
    assert x[:, -1].tolist() == pytest.approx([1.0] * 200, abs=1e-15)
    assert bool((x.diff(dim=1) > 0).all())
    assert curves.amin(dim=1).tolist() == [0.0] * 200
    assert curves.amax(dim=1).tolist() == [1.0] * 200


def test_moving_and_stretching_the_points_changes_nothing(seeded):
    x, y = draw(seeded, 50)
    before = normalised_fit(x, y, 6)
    after = normalised_fit(7 * x - 3, 0.25 * y + 11, 6)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


def test_degree_six_passes_through_all_points(seeded):
    x, y = draw(seeded, 200)
    x[:, 1:-1] = torch.linspace(-1, 1, GRID, dtype=torch.float64)[[17, 30, 50, 66, 83]]
    x[:, 0], x[:, -1] = -1, 1  # so that the points lie on the grid
    _, points, curves = normalised_fit(x, y, 6)
    torch.testing.assert_close(points, curves[:, [0, 17, 30, 50, 66, 83, 99]], rtol=0, atol=1e-10)


def test_points_that_nearly_coincide_keep_the_fit_finite():
    x = torch.tensor([[0.0, 0.2, 0.2 + 1e-9, 0.4, 0.6, 0.8, 1.0]], dtype=torch.float64)
    y = torch.tensor([[0.5, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
    _, points, curves = normalised_fit(x, y, 6)
    assert bool(curves.isfinite().all())
    assert float(points.max() - points.min()) < 1e-6  # the swing between them dwarfs them all


@pytest.mark.parametrize("degree", [0, 7])
def test_other_degrees_are_refused(seeded, degree):
    with pytest.raises(
        ValueError, match=f"7 points take a polynomial of degree 1 to 6; found {degree}"
    ):
        normalised_fit(*draw(seeded, 2), degree)


def test_more_samples_begin_with_the_same_ones(monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 8)
    few, many = make_samples(11, 6, 0, "training"), make_samples(30, 6, 0, "training")
    assert torch.equal(few.inputs, many.inputs[:11])
    assert torch.equal(few.curves, many.curves[:11])
    assert len(few) == 11
    assert len(torch.unique(many.inputs[:, POINTS])) == 30  # chunks do not repeat each other


def test_samples_are_the_scaled_fits_to_uniform_points():
    samples = make_samples(5000, 6, 0, "training")
    assert samples.inputs.dtype == samples.curves.dtype == torch.float32
    assert samples.inputs[:, :POINTS].mean(dim=0).tolist() == pytest.approx(
        [i / 6 for i in range(7)], abs=0.01
    )
    x, y = samples.inputs.double().split(POINTS, dim=1)
    refitted = normalised_fit(x, y, 6)[2]
    # Float32 points: where two nearly coincide the fit to them is another one.
    assert float((refitted - samples.curves).abs().median()) < 1e-6


def test_seed_and_purpose_decide_the_samples():
    state = torch.get_rng_state()
    one = make_samples(3, 6, 0, "training").inputs
    assert torch.equal(one, make_samples(3, 6, 0, "training").inputs)
    assert not torch.equal(one, make_samples(3, 6, 1, "training").inputs)
    assert not torch.equal(one, make_samples(3, 6, 0, "test").inputs)
    assert torch.equal(state, torch.get_rng_state())


def test_the_grid_goes_evenly_from_zero_to_one():
    assert grid().tolist() == pytest.approx([i / 99 for i in range(100)])
