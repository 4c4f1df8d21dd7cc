"""One ternary linear as BitNet stores it: exact round trips, the stock packing, what is refused."""

import dataclasses

import pytest
import torch
from transformers.integrations.bitnet import pack_weights, unpack_weights

from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.export.formats import bitnet
from normtweak_core.export.formats.bitnet import check_conversion, check_layer
from normtweak_core.export.formats.scheme import TernaryScheme
from normtweak_core.export.formats.table import BITNET, describe
from normtweak_core.ternary.weight import ternary_linear

LINEARS = frozenset({"lm_head", "model.layers.0.q", "model.layers.1.q"})


def layer_of(generator, rows=12, columns=33, gain=True, bias=True, dtype=torch.float16):
    return ternary_linear(
        torch.randn(rows, columns, generator=generator),
        torch.randn(columns, generator=generator).half().float() if gain else None,
        torch.randn(rows, generator=generator).half().float() if bias else None,
        dtype,
    )


@pytest.mark.parametrize("rows", [4, 12, 64])
def test_codes_are_packed_as_transformers_packs_and_unpacks_them(rows, seeded):
    codes = layer_of(seeded(rows), rows=rows).codes
    packed = bitnet.pack_codes(codes)
    assert torch.equal(packed, pack_weights(codes.clone()))
    assert torch.equal(bitnet.unpack_codes(packed), codes)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(unpack_weights(packed, torch.float32), codes.float())


def test_a_byte_holds_one_row_of_each_quarter_lowest_bits_first():
    codes = torch.tensor([[-1], [0], [1], [-1], [0], [1], [1], [0]], dtype=torch.int8)
    packed = bitnet.pack_codes(codes)
    assert packed[:, 0].tolist() == [0b10_01_10_00, 0b01_10_00_01]  # rows 6 4 2 0 and 7 5 3 1


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_comes_back_exactly(gain, bias, seeded):
    layer = layer_of(seeded(), gain=gain, bias=bias)
    tensors = bitnet.pack_linear(layer, torch.float16)
    assert set(tensors) <= set(bitnet.SUFFIXES)
    assert tensors["weight_scale"].shape == (1,)
    assert {t.dtype for t in tensors.values()} == {torch.uint8, torch.float16}
    again = bitnet.unpack_linear(tensors, TernaryScheme(gain, 1e-6))
    for field, value in vars(layer).items():
        found = getattr(again, field)
        assert (found is None and value is None) or torch.equal(found, value), field


def test_a_gain_is_stored_just_where_the_scheme_says(seeded):
    with_gain = bitnet.pack_linear(layer_of(seeded()), torch.float16)
    without = bitnet.pack_linear(layer_of(seeded(), gain=False), torch.float16)
    with pytest.raises(InputError, match=r"an RMSNorm before the linear must .* it lacks it\. Exp"):
        bitnet.unpack_linear(without, TernaryScheme(True, 1e-6))
    with pytest.raises(InputError, match=r"no RMSNorm before the linear must .* holds one\."):
        bitnet.unpack_linear(with_gain, TernaryScheme(False, 1e-6))


def test_the_config_names_the_class_whose_bias_is_right_and_every_float_linear():
    quantized = frozenset({"model.layers.1.q"})
    config = describe(BITNET, TernaryScheme(True, 1e-5), LINEARS, quantized, "model.layers.")
    assert config == {
        "quant_method": "bitnet",
        "linear_class": "bitlinear",
        "quantization_mode": "offline",
        "use_rms_norm": True,
        "rms_norm_eps": 1e-5,
        "modules_to_not_convert": ["lm_head", "model.layers.0.q"],
    }


def test_names_that_transformers_cannot_tell_apart_are_refused():
    check_conversion(LINEARS, LINEARS - {"lm_head"}, ())
    with pytest.raises(InputError, match=r"would leave model\.layers\.0\.up_proj float"):
        check_conversion(
            frozenset({"proj", "model.layers.0.up_proj"}), frozenset({"model.layers.0.up_proj"}), ()
        )
    with pytest.raises(InputError, match=r"would leave model\.layers\.0\.q float"):
        check_conversion(LINEARS, LINEARS - {"lm_head"}, ["q"])


def test_rows_that_fill_no_byte_are_refused(seeded):
    layer = layer_of(seeded(), rows=14)
    message = r"multiple of 4; down has 14 outputs \(and 33 inputs\)\. Leave it float"
    with pytest.raises(InputError, match=message):
        check_layer("down", layer, torch.float16)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"codes": torch.full((12, 33), 2, dtype=torch.int8)}, ValueError, "must be -1, 0 or 1"),
        ({"weight_scale": torch.tensor(0.1)}, ValueError, "float16 holds; that of down is not"),
        ({"weight_scale": torch.tensor(7e4)}, InputError, "cannot hold the weight_scale .* 70000"),
        ({"weight_scale": torch.tensor(0.0)}, NonFiniteError, "must be positive; that of down is"),
        ({"weight_scale": torch.tensor(torch.nan)}, NonFiniteError, "every weight_scale must be"),
        ({"gain": torch.full((33,), torch.inf)}, NonFiniteError, "every gain must be finite"),
        ({"gain": torch.full((33,), 1e6)}, InputError, "cannot hold the gain of down, .* 1e"),
        ({"bias": torch.full((12,), torch.nan)}, NonFiniteError, "every bias must be finite"),
    ],
)
def test_a_linear_that_the_format_does_not_hold_is_refused(change, error, message, seeded):
    layer = layer_of(seeded())
    check_layer("down", layer, torch.float16)
    with pytest.raises(error, match=message):
        check_layer("down", dataclasses.replace(layer, **change), torch.float16)
