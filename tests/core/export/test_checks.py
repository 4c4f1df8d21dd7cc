"""What is refused before any work, and that everything else is let through."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import (
    pack_to_int32,
    unpack_from_int32,
)
from safetensors.torch import save_file

from normtweak_core.errors import InputError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.formats.checks import (
    LinearShape,
    check_exportable,
    check_ternary_exportable,
    linear_shapes,
)
from normtweak_core.quantization.config import QuantizationConfig

EVEN = {"model.layers.0.up": LinearShape(512, 256), "model.layers.0.down": LinearShape(256, 512)}
ODD = {"model.layers.0.down": LinearShape(64, 172)}


def check(form, linears, *, bits=4, group_size=None, dtype="auto", reader=True):
    check_exportable(
        ExportConfig(format=form, dtype=dtype),
        QuantizationConfig(bits=bits, group_size=group_size),
        linears,
        reader_available=reader,
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form", ["auto", "compressed-tensors"])
def test_compressed_tensors_takes_every_shape(form, bits):
    check(form, EVEN, bits=bits, group_size=64, reader=False)
    check(form, ODD, bits=bits, reader=False)
    check(form, ODD, bits=bits, group_size=4, dtype="float32", reader=False)


@pytest.mark.parametrize(("bits", "group_size"), [(2, 16), (2, None), (3, 32), (4, 64), (8, 512)])
def test_gptq_takes_even_shapes(bits, group_size):
    linears = {"model.layers.0.up": LinearShape(512, 512)}
    check("gptq", linears, bits=bits, group_size=group_size)


def test_a_group_size_must_divide_every_input_width():
    with pytest.raises(InputError, match=r"64 does not divide 172 of model\.layers\.0\.down"):
        check("auto", ODD, group_size=64)


def opens(bits, outputs, groups):
    """Say whether the library unpacks zero points as a file holds them."""
    zeros = torch.arange(outputs * groups, dtype=torch.int8).reshape(outputs, groups) % 2
    packed = pack_to_int32(zeros, bits, packed_dim=0)
    stored = torch.tensor(packed.flatten().tolist(), dtype=torch.int32).reshape(packed.shape)
    try:
        found = unpack_from_int32(stored, bits, zeros.shape, packed_dim=0)
    except RuntimeError:  # "self.stride(-1) must be 1 to view Int as Byte"
        return False
    return torch.equal(found, zeros)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("outputs", [1, 8, 9, 16])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zero_points_are_refused_just_where_their_reader_fails_on_them(bits, outputs, groups):
    linears = {"model.layers.0.gate": LinearShape(outputs, 32 * groups)}
    told = rf"gate has {outputs} outputs \(and 64 inputs\)\. Set quantization\.symmetric to true"
    fails = not opens(bits, outputs, groups)
    with pytest.raises(InputError, match=told) if fails else nullcontext():
        check("auto", linears, bits=bits, group_size=32)
    assert fails == (bits == 4 and outputs <= 8 and groups == 2)
    for other in ({"symmetric": True}, {"group_size": None}):
        grid = QuantizationConfig(**{"bits": bits, "group_size": 32} | other)
        check_exportable(ExportConfig(), grid, linears, reader_available=False)


def test_gptq_without_groups_at_4_bits_is_refused():
    with pytest.raises(InputError, match=r"gptq at 4 bits needs groups.*Set group_size"):
        check("gptq", EVEN)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 16), (4, 512), (2, 8), (3, 4)])
def test_gptq_group_sizes_that_its_reader_lacks_are_refused(bits, group_size):
    with pytest.raises(
        InputError, match=rf"at {bits} bits needs .*group_size.* it is {group_size}"
    ):
        check(
            "gptq", {"model.layers.0.up": LinearShape(512, 512)}, bits=bits, group_size=group_size
        )


@pytest.mark.parametrize(("bits", "unit"), [(2, 16), (3, 32)])
def test_gptq_widths_that_do_not_fill_words_are_refused(bits, unit):
    with pytest.raises(InputError, match=f"multiples of {unit}; the input of .* is 172"):
        check("gptq", ODD, bits=bits)
    with pytest.raises(InputError, match=f"multiples of {unit}; the output of .* is 40"):
        check("gptq", {"model.layers.0.k": LinearShape(40, 64)}, bits=bits)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gptq_in_another_float_type_is_refused(dtype):
    with pytest.raises(InputError, match=f"needs export.dtype float16.* it is {dtype}"):
        check("gptq", EVEN, group_size=64, dtype=dtype)


def test_gptq_without_its_reader_is_refused_with_what_to_do():
    with pytest.raises(InputError, match=r"absent or not complete\. Run `make reader-gptq`"):
        check("gptq", EVEN, group_size=64, reader=False)


@pytest.mark.parametrize("form", ["auto", "bitnet", "gguf"])
def test_ternary_models_need_output_widths_that_fill_bytes(form):
    check_ternary_exportable(ExportConfig(format=form), EVEN | {"down": LinearShape(64, 171)})
    with pytest.raises(InputError, match=r"multiple of 4; up has 171 outputs \(and 64 inputs\)"):
        check_ternary_exportable(ExportConfig(format=form), EVEN | {"up": LinearShape(171, 64)})


def test_ternary_models_of_conv1d_or_in_another_format_are_refused():
    linears = {"transformer.h.0.attn.c_attn": LinearShape(192, 64, transposed=True)}
    with pytest.raises(InputError, match="c_attn is a Conv1D"):
        check_ternary_exportable(ExportConfig(), linears)
    with pytest.raises(InputError, match=r"must be bitnet; it is compressed-tensors.*auto or bit"):
        check_ternary_exportable(ExportConfig(format="compressed-tensors"), EVEN)


def test_shapes_come_from_the_headers_of_the_blocks(tmp_path):
    save_file(
        {
            "model.embed_tokens.weight": torch.zeros(100, 8),
            "model.layers.0.self_attn.k_proj.weight": torch.zeros(4, 8),
            "model.layers.0.input_layernorm.weight": torch.zeros(8),
            "model.layers.11.mlp.up_proj.weight": torch.zeros(24, 8),
            "model.layers.11.mlp.up_proj.bias": torch.zeros(24),
            "lm_head.weight": torch.zeros(100, 8),
        },
        tmp_path / "model.safetensors",
    )
    assert linear_shapes(tmp_path) == {
        "model.layers.0.self_attn.k_proj": LinearShape(4, 8),
        "model.layers.11.mlp.up_proj": LinearShape(24, 8),
    }


def test_what_mamba_reads_without_a_call_is_no_linear_of_a_run(tmp_path):
    save_file(
        {
            "backbone.layers.0.mixer.dt_proj.weight": torch.zeros(64, 2),
            "backbone.layers.0.mixer.x_proj.weight": torch.zeros(34, 64),
        },
        tmp_path / "model.safetensors",
    )
    assert list(linear_shapes(tmp_path)) == ["backbone.layers.0.mixer.x_proj"]


def test_conv1d_is_seen_from_a_bias_along_the_second_dimension(tmp_path):
    save_file(
        {
            "h.0.attn.c_attn.weight": torch.zeros(8, 24),
            "h.0.attn.c_attn.bias": torch.zeros(24),
            "h.0.attn.c_proj.weight": torch.zeros(8, 8),
            "h.0.attn.c_proj.bias": torch.zeros(8),
        },
        tmp_path / "model.safetensors",
    )
    assert linear_shapes(tmp_path) == {
        "h.0.attn.c_attn": LinearShape(24, 8, transposed=True),
        "h.0.attn.c_proj": LinearShape(8, 8, transposed=True),
    }


def test_checks_and_verify_import_no_torch():
    code = (
        "import sys, normtweak_core.export.formats.checks\n"
        "import normtweak_core.export.verification.verify\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def rounded(form, linears):
    config = QuantizationConfig(bits=4, group_size=32, symmetric=True, activation_bits=8)
    check_exportable(ExportConfig(format=form), config, linears, reader_available=True)


def test_rounded_activations_need_a_reader_that_rounds_them():
    rounded("auto", EVEN)
    with pytest.raises(InputError, match=r"gptq holds no rounded activations; .*_bits is 8\. Use"):
        rounded("gptq", EVEN)
    expert = {f"model.layers.0.mlp.experts.{i}.up_proj": LinearShape(64, 64) for i in (0, 1)}
    with pytest.raises(InputError, match="transformers unpacks experts while it loads them, and"):
        rounded("auto", expert)


def test_widths_that_are_chosen_without_them_round_no_activations():
    message = (
        r"needs one width of all weights, .* found bits: \{'average': 3\.0, 'choose_from': \(2"
    )
    with pytest.raises(ValueError, match=message):
        QuantizationConfig(bits={"average": 3}, symmetric=True, activation_bits=8)
