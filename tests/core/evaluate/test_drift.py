"""Drift of streams and its plot."""

import math

import pytest
import torch

from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.evaluate.drift import DriftAccumulator, delta_mean, drift
from normtweak_core.evaluate.plot import drift_plot


def streams() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    reference = torch.randn(4, 9, 6, generator=generator)
    return reference + 0.1 * torch.randn(4, 9, 6, generator=generator), reference


def test_drift_agrees_with_a_loop_over_tokens():
    quantized, reference = streams()
    delta = [0.0] * 6
    delta_squared = float_squared = 0.0
    for x_q, x_f in zip(quantized.reshape(-1, 6), reference.reshape(-1, 6), strict=True):
        for channel in range(6):
            difference = x_q[channel].item() - x_f[channel].item()
            delta[channel] += difference / 36
            delta_squared += difference**2
            float_squared += x_f[channel].item() ** 2

    result = drift(quantized, reference)

    assert delta_mean(quantized, reference).tolist() == pytest.approx(delta)
    assert result.mean == pytest.approx(sum(delta) / 6)
    assert result.mean_abs == pytest.approx(sum(map(abs, delta)) / 6)
    assert result.relative_norm == pytest.approx(math.sqrt(delta_squared / float_squared))


def test_equal_streams_do_not_drift():
    _, reference = streams()
    result = drift(reference, reference)
    assert (result.mean, result.mean_abs, result.relative_norm) == (0, 0, 0)


def test_batches_add_up_to_the_whole():
    quantized, reference = streams()
    sums = DriftAccumulator()
    for start in range(0, 4, 3):
        sums.add(quantized[start : start + 3], reference[start : start + 3])
    whole = drift(quantized, reference)
    assert sums.result().relative_norm == pytest.approx(whole.relative_norm)
    torch.testing.assert_close(sums.delta_mean(), delta_mean(quantized, reference))


def test_a_shift_of_one_channel_is_found_there():
    _, reference = streams()
    shifted = reference.clone()
    shifted[..., 2] += 0.5
    found = delta_mean(shifted, reference)
    torch.testing.assert_close(
        found, torch.tensor([0, 0, 0.5, 0, 0, 0], dtype=torch.float64), atol=1e-7, rtol=0
    )


def test_a_nan_in_a_stream_is_refused():
    quantized, reference = streams()
    quantized[1, 2, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="found NaN or infinity in the stream"):
        drift(quantized, reference)


def test_a_float_stream_of_zeros_is_refused():
    with pytest.raises(NonFiniteError, match="zero everywhere"):
        drift(torch.ones(2, 3), torch.zeros(2, 3))


def test_the_same_plot_is_the_same_bytes(tmp_path):
    series = {"rtn": [0.01, 0.2, 0.9], "gptq": [0.01, 0.1, 0.3]}
    drift_plot(tmp_path / "a.png", series, "drift")
    drift_plot(tmp_path / "b.png", series, "drift")
    first = (tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert first == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]

    drift_plot(tmp_path / "c.png", {**series, "gptq": [0.01, 0.1, 0.2]}, "drift")
    assert first != (tmp_path / "c.png").read_bytes()


def test_series_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"found lengths \{'a': 1, 'b': 2\}"):
        drift_plot(tmp_path / "a.png", {"a": [1.0], "b": [1.0, 2.0]}, "drift")
    assert not list(tmp_path.iterdir())


def test_a_plot_without_series_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"found lengths \{\}"):
        drift_plot(tmp_path / "a.png", {}, "drift")
