"""The losses of norm tweaking on numbers worked out by hand."""

import pytest
import torch

from normtweak_core.tweak.loss import channel_loss, kl_loss, mse_loss, window_loss

F = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
Q = torch.tensor([[1.0, 9.0, 3.0], [8.0, 5.0, 6.0]])


def test_channel_loss_equals_the_published_vector():
    assert channel_loss(F, Q).item() == pytest.approx(29 / 3, rel=1e-6)


def test_every_loss_is_zero_for_identical_outputs():
    for loss in (channel_loss, mse_loss, kl_loss):
        assert loss(F, F.clone()).item() == pytest.approx(0.0, abs=1e-7)


def test_mse_loss_by_hand():
    assert mse_loss(F, Q).item() == pytest.approx((49 + 16) / 6)


def test_kl_loss_by_hand():
    target, output = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, torch.log(torch.tensor(3.0))]])
    p, q = (0.5, 0.5), (0.25, 0.75)
    expected = sum(a * torch.log(torch.tensor(a / b)) for a, b in zip(p, q, strict=True))
    assert kl_loss(target, output).item() == pytest.approx(expected.item(), rel=1e-6)


def test_window_loss_flattens_batches_into_tokens_and_works_in_float32():
    assert window_loss(channel_loss, F[None].half(), Q[None].half()).dtype == torch.float32
    assert window_loss(channel_loss, F[None], Q[None]).item() == pytest.approx(29 / 3, rel=1e-6)
