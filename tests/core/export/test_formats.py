"""One linear in each format: exact round trips, stored types, and what config.json says."""

import pytest
import torch

from normtweak_core.export.config import ExportConfig
from normtweak_core.export.formats import compressed_tensors, gptq
from normtweak_core.export.formats.packing import unpack_rows
from normtweak_core.export.formats.scheme import Scheme
from normtweak_core.export.formats.table import (
    BITNET,
    COMPRESSED_TENSORS,
    GPTQ,
    chosen_format,
    describe,
)
from tests.tiny_exports import round_to_nearest

BITS = (2, 3, 4, 8)
CASES = [(b, g, s) for b in BITS for g in (32, None) for s in (True, False)]
LINEARS = frozenset(
    {"lm_head", "model.layers.0.q", "model.layers.0.k", "model.layers.1.q", "model.layers.1.k"}
)


def layer(generator, bits, group_size, symmetric, rows=64, columns=96):
    weight = torch.randn((rows, columns), generator=generator)
    return round_to_nearest(weight, bits, group_size, symmetric, torch.float16)


@pytest.mark.parametrize("form", [COMPRESSED_TENSORS, GPTQ], ids=lambda form: form.name)
@pytest.mark.parametrize(("bits", "group_size", "symmetric"), CASES)
def test_a_linear_comes_back_exactly(form, bits, group_size, symmetric, seeded):
    weight = layer(seeded(bits), bits, group_size, symmetric)
    tensors = form.pack(weight, torch.float16)
    assert set(tensors) <= set(form.suffixes)
    again = form.unpack(tensors, Scheme.of(weight))
    for field in ("codes", "scales", "zeros"):
        assert torch.equal(getattr(again, field), getattr(weight, field)), field
    assert torch.equal(again.dequantize(), weight.dequantize())


@pytest.mark.parametrize("bits", BITS)
def test_compressed_tensors_holds_widths_that_fill_no_words(bits, seeded):
    weight = layer(seeded(bits), bits, None, False, rows=17, columns=51)
    tensors = compressed_tensors.pack_linear(weight, torch.bfloat16)
    assert tensors["weight_packed"].shape == (17, -(-51 * bits // 32))
    assert tensors["weight_zero_point"].shape == (-(-17 * bits // 32), 1)
    assert tensors["weight_shape"].tolist() == [17, 51]
    assert tensors["weight_scale"].dtype == torch.bfloat16


def test_gptq_stores_zero_minus_one_only_where_symmetric(seeded):
    for symmetric in (True, False):
        weight = layer(seeded(), 3, 32, symmetric)
        tensors = gptq.pack_linear(weight, torch.float16)
        stored = unpack_rows(tensors["qzeros"], 3, 64).T
        assert torch.equal(stored + int(symmetric), weight.zeros)
        config = gptq.quantization_config(Scheme.of(weight), [], True, "model.layers")
        assert config["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2")
        assert "block_name_to_quantize" not in config
        other = gptq.quantization_config(Scheme.of(weight), [], True, "transformer.blocks")
        assert other == config | {"block_name_to_quantize": "transformer.blocks"}


def test_gptq_lays_codes_along_the_input_and_names_each_columns_group(seeded):
    weight = layer(seeded(), 4, 32, False)
    tensors = gptq.pack_linear(weight, torch.float16)
    assert tensors["qweight"].shape == (96 * 4 // 32, 64)
    assert tensors["scales"].shape == (3, 64)
    first = int(tensors["qweight"][0, 5])
    assert [(first >> (4 * i)) & 15 for i in range(8)] == weight.codes[5, :8].tolist()
    assert tensors["g_idx"].tolist() == [column // 32 for column in range(96)]


def test_auto_is_compressed_tensors():
    assert chosen_format(ExportConfig()) is COMPRESSED_TENSORS
    assert chosen_format(ExportConfig(format="gptq")) is GPTQ
    assert chosen_format(ExportConfig(format="bitnet")) is BITNET
    assert chosen_format(ExportConfig(format="gguf")) is COMPRESSED_TENSORS


@pytest.mark.parametrize("symmetric", [True, False])
def test_only_an_asymmetric_compressed_export_asks_to_be_dequantized(symmetric):
    quantized = LINEARS - {"lm_head"}
    config = describe(
        COMPRESSED_TENSORS, Scheme(3, 64, symmetric), LINEARS, quantized, "model.layers."
    )
    assert config.get("dequantize", False) is not symmetric
    assert config["ignore"] == ["lm_head"]
    weights = config["config_groups"]["group_0"]["weights"]
    assert (weights["strategy"], weights["group_size"]) == ("group", 64)


def test_a_whole_row_is_a_channel_in_one_format_and_minus_one_in_the_other():
    scheme = Scheme(2, None, True)
    config = describe(COMPRESSED_TENSORS, scheme, LINEARS, LINEARS, "model.layers.")
    weights = config["config_groups"]["group_0"]["weights"]
    assert (weights["strategy"], weights["group_size"]) == ("channel", None)
    assert describe(GPTQ, scheme, LINEARS, LINEARS, "model.layers.")["group_size"] == -1


def test_layers_left_float_are_named_to_the_reader():
    quantized = LINEARS - {"lm_head", "model.layers.1.k"}
    scheme = Scheme(4, 64, True)
    config = describe(COMPRESSED_TENSORS, scheme, LINEARS, quantized, "model.layers.")
    assert config["ignore"] == ["lm_head", "model.layers.1.k"]
    config = describe(GPTQ, scheme, LINEARS, quantized, "model.layers.")
    assert config["modules_in_block_to_quantize"] == [sorted(quantized)]
    complete = describe(GPTQ, scheme, LINEARS, LINEARS - {"lm_head"}, "model.layers.")
    assert "modules_in_block_to_quantize" not in complete
