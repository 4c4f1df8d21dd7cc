"""Our ternary linear against transformers' own, number for number."""

import pytest
import torch
from transformers.integrations.bitnet import BitLinear, pack_weights

from normtweak_core.ternary.inference import TernaryInference
from normtweak_core.ternary.weight import TernaryLinear, ternary_linear

EPS = 1e-5


def layer_of(generator, gain, bias, rows=24, columns=52):
    return ternary_linear(
        torch.randn(rows, columns, generator=generator),
        torch.randn(columns, generator=generator).exp() if gain else None,
        torch.randn(rows, generator=generator) if bias else None,
        torch.float32,
    )


def stock(layer):
    rows, columns = layer.codes.shape
    module = BitLinear(
        columns,
        rows,
        layer.bias is not None,
        dtype=torch.float32,
        use_rms_norm=layer.gain is not None,
        rms_norm_eps=EPS,
    )
    module.weight.copy_(pack_weights(layer.codes.clone()))
    module.weight_scale.copy_(layer.weight_scale)
    if layer.gain is not None:
        module.rms_norm.weight.data.copy_(layer.gain)
    if layer.bias is not None:
        module.bias.copy_(layer.bias)
    return module


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


def test_half_precision_goes_in_and_comes_out(seeded):
    layer = layer_of(seeded(), True, True)
    x = torch.randn(3, 52, generator=seeded(1)).half()
    module = TernaryInference(layer, EPS)
    y = module(x)
    assert y.dtype == torch.float16
    assert torch.equal(y, module(x.float()).half())
