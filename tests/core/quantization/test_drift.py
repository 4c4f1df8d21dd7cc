"""Drift between the two streams."""

import math

import pytest
import torch

from normtweak_core.errors import NonFiniteError
from normtweak_core.quantization.drift import RunningDrift, drift


def streams(seeded) -> tuple[torch.Tensor, torch.Tensor]:
    reference = torch.randn(4, 9, 6, generator=seeded(3))
    return reference + 0.1 * torch.randn(4, 9, 6, generator=seeded(4)), reference


def test_drift_by_hand():
    x_f = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    x_q = torch.tensor([[[3.0, 4.0], [1.0, -2.0]]])
    found = drift(x_q, x_f)
    assert found.relative_norm == pytest.approx((5 / 25) ** 0.5)
    assert found.mean_shift == pytest.approx((0.5 + 1.0) / 2)


def test_each_channel_by_hand():
    x_f = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    x_q = torch.tensor([[[3.0, 4.0], [1.0, -2.0]]])
    assert {name: tensor.tolist() for name, tensor in drift(x_q, x_f).tensors().items()} == {
        "mean_float": [1.5, 2.0],
        "variance_float": [2.25, 4.0],
        "mean": [2.0, 1.0],
        "variance": [1.0, 9.0],
        "square_error": [0.5, 2.0],
    }


def test_pieces_of_any_size_give_the_drift_of_the_whole(seeded):
    x_q, x_f = (stream.reshape(-1, 6) for stream in streams(seeded))
    running = RunningDrift()
    for part in (slice(0, 1), slice(1, 20), slice(20, 36)):
        running.add(x_q[part], x_f[part])
    whole = drift(x_q[None], x_f[None]).tensors()
    for name, tensor in running.result().tensors().items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-13, atol=1e-15)


def test_drift_without_tokens_is_refused():
    with pytest.raises(ValueError, match="at least one token; none was added"):
        RunningDrift().result()


def test_drift_agrees_with_a_loop_over_tokens(seeded):
    x_q, x_f = streams(seeded)
    shift = [0.0] * 6
    delta_squared = float_squared = 0.0
    for quantized, wanted in zip(x_q.reshape(-1, 6), x_f.reshape(-1, 6), strict=True):
        for channel in range(6):
            delta = quantized[channel].item() - wanted[channel].item()
            shift[channel] += delta / 36
            delta_squared += delta**2
            float_squared += wanted[channel].item() ** 2
    found = drift(x_q, x_f)
    assert found.relative_norm == pytest.approx(math.sqrt(delta_squared / float_squared))
    assert found.mean_shift == pytest.approx(sum(map(abs, shift)) / 6)


def test_equal_streams_do_not_drift(seeded):
    _, x_f = streams(seeded)
    assert (drift(x_f, x_f).relative_norm, drift(x_f, x_f).mean_shift) == (0, 0)


def test_a_shift_of_one_channel_is_its_share_of_the_mean(seeded):
    _, x_f = streams(seeded)
    shifted = x_f.clone()
    shifted[..., 2] += 0.5
    assert drift(shifted, x_f).mean_shift == pytest.approx(0.5 / 6, abs=1e-7)


def test_a_nan_in_a_stream_is_refused(seeded):
    x_q, x_f = streams(seeded)
    x_q[1, 2, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="found NaN or infinity in the stream"):
        drift(x_q, x_f)


def test_a_float_stream_of_zeros_is_refused():
    with pytest.raises(NonFiniteError, match="zero everywhere"):
        drift(torch.ones(1, 2, 3), torch.zeros(1, 2, 3))
