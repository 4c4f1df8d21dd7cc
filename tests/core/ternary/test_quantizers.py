"""Quantizers against published vectors, their levels, and the gradients that pass through."""

import math

import pytest
import torch

from normtweak_core.ternary.quantizers import (
    absmax,
    absmean,
    binary,
    initial_scale,
    int8_tokens,
    lsq,
    seq,
    straight_through,
)

# The worked example of the Hugging Face blog on 1.58-bit fine-tuning.
BLOG = torch.tensor([[0.8, -0.5, 1.2], [-1.5, 0.4, -0.9], [1.3, -0.7, 0.2]])


def test_absmean_of_the_published_example():
    codes = torch.tensor([[1.0, -1, 1], [-1, 0, -1], [1, -1, 0]])
    torch.testing.assert_close(absmean(BLOG), codes * (7.5 / 9), rtol=1e-6, atol=0)


def test_absmean_per_row_gives_each_row_its_own_scale():
    weight = torch.tensor([[1.0, -1.0, 0.1], [10.0, -10.0, 1.0]])
    rounded = absmean(weight, per_row=True)
    torch.testing.assert_close(rounded[1], rounded[0] * 10)
    assert rounded[0].tolist() == pytest.approx([0.7, -0.7, 0.0])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_absmax_is_the_plain_formula_row_by_row(seeded, bits):
    weight = torch.randn(5, 33, generator=seeded(bits))
    rounded = absmax(weight, bits)
    highest = 2 ** (bits - 1) - 1
    for row in range(5):
        inverse = highest / max(abs(w) for w in weight[row].tolist())
        expected = [
            min(highest, max(-highest - 1, round(w * inverse))) / inverse
            for w in weight[row].tolist()
        ]
        assert rounded[row].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert len(set(rounded[row].tolist())) <= 2 * highest + 1  # at 2 bits three levels


@pytest.mark.parametrize("bits", [1, 9])
def test_absmax_refuses_other_widths(bits):
    with pytest.raises(ValueError, match=f"from 2 to 8 bits; found {bits}"):
        absmax(BLOG, bits)


def test_binary_has_two_levels_and_calls_zero_positive():
    rounded = binary(torch.tensor([[0.0, -2.0, 4.0], [1.0, 1.0, -1.0]]))
    assert rounded.tolist() == [[2.0, -2.0, 2.0], [1.0, 1.0, -1.0]]


def test_int8_tokens_scales_each_token_by_its_largest_magnitude():
    x = torch.tensor([[1.27, -0.5, 0.004], [0.0, 0.0, 0.0]])
    rounded = int8_tokens(x)
    assert rounded[0].tolist() == pytest.approx([1.27, -0.5, 0.0], abs=1e-6)
    assert rounded[1].tolist() == [0.0, 0.0, 0.0]


def test_int8_tokens_equals_what_transformers_computes(seeded, monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "disable", True)
    from transformers.integrations.bitnet import BitLinear

    x = torch.randn(4, 7, 32, generator=seeded(3)) * 3
    codes, scale = BitLinear(32, 8, bias=False).activation_quant(x)
    assert torch.equal(int8_tokens(x), codes.float() / scale)


@pytest.mark.parametrize("lam", [0.0, 0.25, 1.0])
def test_straight_through_blends_forward_and_passes_the_gradient(seeded, lam):
    latent = torch.randn(4, 6, generator=seeded(5)).requires_grad_()
    blended = straight_through(latent, absmean(latent), lam)
    torch.testing.assert_close(blended, latent + lam * (absmean(latent) - latent))
    upstream = torch.randn(4, 6, generator=seeded(6))
    blended.backward(upstream)
    assert torch.equal(latent.grad, upstream)


def test_every_quantizer_is_idempotent_on_its_own_levels_but_absmean(seeded):
    weight = torch.randn(8, 64, generator=seeded(7))
    for quantize in (binary, lambda w: absmax(w, 4), int8_tokens):
        once = quantize(weight)
        torch.testing.assert_close(quantize(once), once)
    # Zeros pull the mean magnitude of a ternary weight down: it may not be rounded twice.
    once = absmean(weight)
    density = (once != 0).float().mean()
    torch.testing.assert_close(absmean(once), once * density)


@pytest.mark.parametrize(
    ("bits", "levels"), [(1.58, [-2 / 3, 0.0, 2 / 3]), (2, [-0.75, -0.25, 0.25, 0.75])]
)
def test_seq_reaches_exactly_its_levels(bits, levels):
    weight = torch.linspace(-1.2, 1.2, 49)[None]
    found = sorted({round(value, 6) for value in seq(weight, torch.ones(1, 1), bits)[0].tolist()})
    assert found == pytest.approx(levels, abs=1e-6)


@pytest.mark.parametrize("bits", [1.58, 2])
def test_seq_gradients_follow_the_published_rule(bits):
    weight = torch.tensor([[-3.0, -0.2, 0.1, 0.9, 3.0]], requires_grad=True)
    scale = torch.tensor([[2.0]], requires_grad=True)
    upstream = torch.tensor([[1.0, 2.0, -3.0, 4.0, 5.0]])
    rounded = seq(weight, scale, bits)
    rounded.backward(upstream)
    assert weight.grad.tolist() == [[0.0, 2.0, -3.0, 4.0, 0.0]]
    top = 1.0 if bits == 1.58 else 0.75
    slopes = [(q - w) / 2.0 for q, w in zip(rounded[0].tolist(), weight[0].tolist(), strict=True)]
    slopes[0], slopes[-1] = -top, top
    expected = sum(g * s for g, s in zip(upstream[0].tolist(), slopes, strict=True))
    assert scale.grad.item() == pytest.approx(expected / math.sqrt(5), rel=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_lsq_gradients_follow_the_published_rule(seeded, bits):
    weight = (torch.randn(2, 9, generator=seeded(bits)) * 4).requires_grad_()
    scale = torch.tensor([[0.5], [1.0]], requires_grad=True)
    upstream = torch.randn(2, 9, generator=seeded(11))
    lsq(weight, scale, bits).backward(upstream)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for row in range(2):
        total = 0.0
        for column in range(9):
            ratio = weight[row, column].item() / scale[row].item()
            inside = low <= ratio <= high
            assert (weight.grad[row, column] != 0) == inside
            slope = round(ratio) - ratio if inside else (low if ratio < low else high)
            total += upstream[row, column].item() * slope
        assert scale.grad[row].item() == pytest.approx(total / math.sqrt(18 * high), rel=1e-4)


def test_widths_that_a_quantizer_does_not_know_are_refused():
    ones = torch.ones(3, 1)
    with pytest.raises(ValueError, match=r"1\.58 and 2 bits; found 3: use lsq"):
        seq(BLOG, ones, 3)
    with pytest.raises(ValueError, match="at least 2 bits; found 1: use binary"):
        lsq(BLOG, ones, 1)


def test_initial_scales_are_paretoqs():
    weight = torch.tensor([[1.0, -3.0, 2.0]])
    assert initial_scale(weight, 1).item() == 2.0
    assert initial_scale(weight, 1.58).item() == 3.0
    assert initial_scale(weight, 2).item() == 3.0
    assert initial_scale(weight, 4).item() == pytest.approx(3 / 7)
