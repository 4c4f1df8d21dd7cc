"""A linear that learns its scales: its function is the export's, its gradients the true ones."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from normtweak_core.finetune.scales import ScaleLinear
from normtweak_core.quantization.gptq import round_to_nearest
from normtweak_core.quantization.grid import GridSpec


def quantized(seeded, bits=2, symmetric=False, group_size=8, dtype=torch.float16):
    linear = nn.Linear(24, 6)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(0)))
    spec = GridSpec(bits, symmetric, True, dtype)
    return linear, round_to_nearest(linear.weight.detach(), group_size, spec).weight


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [None, 8])
def test_it_starts_as_the_quantized_linear(seeded, bits, symmetric, group_size):
    linear, weight = quantized(seeded, bits, symmetric, group_size)
    x = torch.randn(3, 5, 24, generator=seeded(1))
    learning = ScaleLinear(linear, weight, torch.float16)
    assert torch.equal(learning.scales(), weight.scales)
    wanted = x @ weight.dequantize().T + linear.bias
    assert torch.allclose(learning(x), wanted, atol=1e-5)


def test_gradients_are_those_of_the_plain_formula(seeded):
    linear, weight = quantized(seeded, dtype=torch.float32)
    x = torch.randn(2, 5, 24, generator=seeded(1), dtype=torch.float64)
    wanted = torch.randn(2, 5, 6, generator=seeded(2), dtype=torch.float64)
    learning = ScaleLinear(linear, weight, torch.float32)
    given = x.float().requires_grad_(True)
    (learning(given) * wanted.float()).sum().backward()

    x.requires_grad_(True)
    factors = torch.ones_like(weight.scales, dtype=torch.float64).requires_grad_(True)
    levels = weight.codes.double().unflatten(1, (3, 8)) - weight.zeros.double()[:, :, None]
    plain = (levels * (weight.scales.double() * factors)[:, :, None]).flatten(1)
    ((x @ plain.T + linear.bias.double()) * wanted).sum().backward()
    assert torch.allclose(given.grad.double(), x.grad, rtol=1e-4, atol=1e-5)
    assert torch.allclose(learning.factors.grad.double(), factors.grad, rtol=1e-4, atol=1e-5)


def test_scales_are_what_the_export_type_holds_in_every_pass(seeded):
    linear, weight = quantized(seeded)
    learning = ScaleLinear(linear, weight, torch.float16)
    with torch.no_grad():
        learning.factors.mul_(1.00013)
    scales = learning.scales()
    assert torch.equal(scales, scales.half().float())
    levels = weight.codes.float().unflatten(1, (3, 8)) - weight.zeros.float()[:, :, None]
    x = torch.randn(5, 24, generator=seeded(1))
    wanted = x @ (levels * scales[:, :, None]).flatten(1).T + linear.bias
    assert torch.allclose(learning(x), wanted, atol=1e-5)


def test_a_dense_linear_of_it_has_its_function(seeded):
    linear, weight = quantized(seeded)
    learning = ScaleLinear(linear, weight, torch.float16)
    with torch.no_grad():
        learning.factors.mul_(1.3)
    dense, x = learning.dense(), torch.randn(5, 24, generator=seeded(1))
    assert torch.equal(dense.weight, replace(weight, scales=learning.scales()).dequantize())
    assert torch.allclose(dense(x), learning(x), atol=1e-5)


def test_only_codes_of_the_weight_are_kept(seeded):
    linear, weight = quantized(seeded)
    learning = ScaleLinear(linear, weight, torch.float16)
    assert {name for name, _ in learning.named_parameters()} == {"factors"}
    assert learning.codes.dtype == torch.uint8
    held = {one.data_ptr() for one in (*learning.parameters(), *learning.buffers())}
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    x = torch.randn(5, 24, generator=seeded(1), requires_grad=True)
    with hooks:
        learning(x)
    new = [one for one in kept if one.data_ptr() not in held | {x.data_ptr()}]
    assert all(one.numel() <= weight.scales.numel() for one in new)
