"""The trained linear: its norm's gradient, its forward pass, and what linears share."""

import pytest
import torch
from torch.nn.functional import linear

from normtweak_core.ternary.linear import SharedInput, TrainedLinear, normalize
from normtweak_core.ternary.quantizers import absmean, int8_tokens

EPS = 1e-6


@pytest.mark.parametrize("ramp", [0.0, 0.3, 1.0])
def test_the_norms_gradient_is_that_of_the_plain_formula(seeded, ramp):
    x = torch.randn(3, 5, 16, generator=seeded(1), dtype=torch.float32).requires_grad_()
    upstream = torch.randn(3, 5, 16, generator=seeded(2))
    normalize(x, EPS, ramp, 0.7).backward(upstream)
    twin = x.detach().double().requires_grad_()
    root = (twin.square().mean(dim=-1, keepdim=True) + EPS).sqrt()
    (twin * (ramp / root + (1 - ramp) / 0.7)).backward(upstream.double())
    torch.testing.assert_close(x.grad, twin.grad.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("own", [False, True])
def test_forward_is_the_formula_of_the_method(seeded, lam, own):
    x = torch.randn(4, 7, 32, generator=seeded(3))
    weight, bias = torch.randn(8, 32, generator=seeded(4)), torch.randn(8, generator=seeded(5))
    gain = torch.rand(32, generator=seeded(6)) + 0.5
    shared = SharedInput(32, None if own else gain.clone(), EPS, 1.0, norm=True)
    layer = TrainedLinear(weight.clone(), bias.clone(), shared, own)
    if own:
        layer.gain.data.copy_(gain)
    layer.lam = shared.lam = lam
    normed = x / (x.square().mean(dim=-1, keepdim=True) + EPS).sqrt() * gain
    x_q = normed + lam * (int8_tokens(normed) - normed)
    w_q = weight + lam * (absmean(weight) - weight)
    torch.testing.assert_close(layer(x), linear(x_q, w_q, bias), rtol=1e-4, atol=1e-4)
    assert torch.equal(layer.full_gain(), gain)


def test_linears_that_read_one_tensor_normalize_it_once(seeded, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "normtweak_core.ternary.linear.normalize", lambda x, *rest: calls.append(x) or x * 1
    )
    shared = SharedInput(16, torch.ones(16), EPS, 1.0, norm=True)
    layers = [
        TrainedLinear(torch.randn(4, 16, generator=seeded(i)), None, shared, False)
        for i in range(3)
    ]
    x = torch.randn(2, 16, generator=seeded(9))
    first = [layer(x) for layer in layers]
    assert len(calls) == 1
    x.add_(1)  # changed in place: what was computed from it is stale
    assert not torch.equal(layers[0](x), first[0])
    assert len(calls) == 2
    shared.forget()
    layers[0](x)
    assert len(calls) == 3


def test_without_norm_and_activation_bits_only_the_weight_is_rounded(seeded):
    weight = torch.randn(4, 16, generator=seeded(1))
    shared = SharedInput(16, None, EPS, 1.0, norm=False)
    shared.activation_bits = None
    layer = TrainedLinear(weight, None, shared, gain=False)
    layer.lam = shared.lam = 1.0
    x = torch.randn(3, 16, generator=seeded(2))
    assert torch.equal(layer(x), linear(x, absmean(weight)))
    assert layer.full_gain() is None


def test_the_latent_weight_gets_the_gradient_of_the_ternary_one(seeded):
    weight = torch.randn(4, 16, generator=seeded(1))
    shared = SharedInput(16, None, EPS, 1.0, norm=False)
    shared.activation_bits = None
    layer = TrainedLinear(weight, None, shared, gain=False)
    layer.lam = shared.lam = 1.0
    x = torch.randn(3, 16, generator=seeded(2))
    layer(x).square().sum().backward()
    rounded = absmean(weight).requires_grad_()
    linear(x, rounded).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, rounded.grad)
