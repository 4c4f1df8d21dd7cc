"""Our ternary linear against transformers' own, number for number."""

import pytest
import torch
from transformers.integrations.bitnet import BitLinear, pack_weights

from normtweak_core.ternary.inference import TernaryInference
from normtweak_core.ternary.weight import TernaryLinear, ternary_linear

EPS = 1e-5


def layer_of(generator, gain, bias, dtype=torch.float32, size=1.0):
    rows, columns = 24, 52
    drawn = (
        torch.randn(rows, columns, generator=generator),
        torch.randn(columns, generator=generator).exp() * size if gain else None,
        torch.randn(rows, generator=generator) if bias else None,
    )
    return ternary_linear(*(None if one is None else one.to(dtype) for one in drawn), dtype)


def stock(layer, dtype=torch.float32):
    rows, columns = layer.codes.shape
    module = BitLinear(
        columns,
        rows,
        layer.bias is not None,
        dtype=dtype,
        use_rms_norm=layer.gain is not None,
        rms_norm_eps=EPS,
    )
    module.weight.copy_(pack_weights(layer.codes.clone()))
    module.weight_scale.copy_(layer.weight_scale)
    if layer.gain is not None:
        module.rms_norm.weight.data.copy_(layer.gain)
    if layer.bias is not None:
        module.bias.copy_(layer.bias)
    return module.to(dtype)


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_the_stock_linear_computes(seeded, gain, bias):
    layer = layer_of(seeded(), gain, bias)
    x = 3 * torch.randn(2, 5, 52, generator=seeded(1))
    x[0, 0] = 0.0  # the scale of a token of zeros is bounded
    x[0, 1] *= 1e-6  # here eps decides
    ours = TernaryInference(layer, EPS)(x)
    with torch.compiler.set_stance("force_eager"), torch.inference_mode():
        theirs = stock(layer)(x)
    assert torch.equal(ours, theirs)
    assert ours[0, 1].abs().max() > 0


def test_the_scale_divides_and_the_bias_does_not_shrink():
    codes = torch.tensor([[1, -1], [0, 1]], dtype=torch.int8)
    layer = TernaryLinear(codes, torch.tensor(4.0), None, torch.tensor([0.5, -1.0]))
    x = torch.tensor([[127.0, -64.0]])  # whole numbers at scale 1
    assert TernaryInference(layer, EPS)(x).tolist() == [[191 / 4 + 0.5, -64 / 4 - 1.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_half_precision_is_computed_as_the_stock_linear_does(seeded, dtype, size):
    layer = layer_of(seeded(), True, True, dtype, size)
    x = torch.randn(3, 52, generator=seeded(1)).to(dtype)
    x[1] = 0.0
    ours = TernaryInference(layer, EPS)(x)
    with torch.compiler.set_stance("force_eager"), torch.inference_mode():
        theirs = stock(layer, dtype)(x)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)
    # Both scales together leave the range of float16: all that is left is the bias.
    lost = dtype is torch.float16 and size < 1
    assert torch.equal(ours[0], layer.bias.to(dtype)) == lost
