"""Exports that other tools have made and saved themselves, read as these tools read them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from normtweak_core.errors import InputError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.foreign.base import BaseWeights
from normtweak_core.export.foreign.layouts import read_packing
from normtweak_core.export.foreign.linears import packed_linears
from normtweak_core.export.foreign.source import read_base, require_made_of, require_order
from normtweak_core.export.foreign.unpacking import AWQ_ORDER, unpacked
from normtweak_core.export.formats.checks import linear_shapes
from normtweak_core.export.opening import load_quantized
from tests.benchmarks.plugin.exports import digest

EXPORTS = Path(__file__).parents[2] / "data" / "exports"
FLOAT = EXPORTS / "float"
MADE = sorted(path.parent for path in EXPORTS.glob("*/dequantized.json"))
NORMS = ("input", "post_attention")
ONE_WIDTH = [path for path in MADE if "mixed" not in path.name]


def named(folder):
    return folder.name


@pytest.fixture
def copied(tmp_path):
    """Return a function that copies an export, with its tensors and its config changed."""

    def copy(name, tensors=lambda held: None, config=lambda entries: None):
        out = tmp_path / "altered"
        out.mkdir()
        held = load_file(EXPORTS / name / "model.safetensors")
        entries = json.loads((EXPORTS / name / "config.json").read_text())
        tensors(held)
        config(entries["quantization_config"])
        save_file({k: v.contiguous() for k, v in held.items()}, out / "model.safetensors")
        (out / "config.json").write_text(json.dumps(entries))
        return out

    return copy


def test_there_are_exports_of_three_tools():
    assert {path.name.split("-w")[0] for path in MADE} >= {"gptqmodel", "autoround"}


@pytest.mark.parametrize("folder", MADE, ids=named)
def test_our_weights_are_those_that_the_tool_computes_with(folder):
    wanted = json.loads((folder / "dequantized.json").read_text())
    linears = packed_linears(folder, read_packing(folder))
    assert len(linears) == 14
    for name, linear in linears.items():
        weight = unpacked(linear).dequantize().to(getattr(torch, wanted[f"{name}.weight"][0]))
        weight += 0.0  # products, by which some tools told, have no negative zero
        assert digest(weight) == wanted[f"{name}.weight"], name


@pytest.mark.parametrize("folder", MADE, ids=named)
def test_everything_else_is_that_of_the_export_and_not_of_the_float_model(folder):
    base, stored = BaseWeights(folder, FLOAT), load_file(folder / "model.safetensors")
    for name, value in base.others.items():
        assert torch.equal(value, stored[name])
    rest = {"model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"}
    norms = [f"model.layers.{i}.{n}_layernorm.weight" for i in (0, 1) for n in NORMS]
    assert set(base.others) == rest.union(norms)


def test_the_nibbles_of_awq_are_in_the_order_that_its_tools_write():
    assert [AWQ_ORDER.index(place) for place in range(8)] == [0, 4, 1, 5, 2, 6, 3, 7]


def test_a_zero_point_of_zero_has_borrowed_from_its_neighbour_in_version_1(copied):
    def as_version_1(held):  # as GPTQModel makes it: one less in every code, as whole words
        for name in [name for name in held if name.endswith("qzeros")]:
            held[name][0, 0] &= ~0b110011  # of the first and the third row
            held[name] -= 0b01010101010101010101010101010101

    name = "gptqmodel-w2-v2"
    folder = copied(name, as_version_1, lambda entries: entries.update(checkpoint_format="gptq"))
    before, after = (packed_linears(f, read_packing(f)) for f in (EXPORTS / name, folder))
    for linear, one in before.items():
        wanted = unpacked(one).zeros
        wanted[0, 0] = wanted[2, 0] = 0
        assert torch.equal(unpacked(after[linear]).zeros, wanted)


@pytest.mark.parametrize("folder", ONE_WIDTH, ids=named)
def test_a_base_tells_its_grid_and_who_has_made_it(folder):
    base = read_base(str(folder))
    assert base.bits == int(folder.name.split("-w")[1][0]) if "-w" in folder.name else 4
    assert base.group_size == (None if "channel" in folder.name else 32)
    assert base.symmetric is ("symmetric" in folder.name)
    assert base.act_order is ("act-order" in folder.name)
    tools = {"gptqmodel": "gptqmodel:7.7.0", "autoround": "auto-round 0.16.1"}
    assert base.quantized_by.startswith(tools.get(folder.name.split("-")[0], "llm-compressor"))
    require_made_of(base, FLOAT, linear_shapes(FLOAT))


def test_negative_scales_are_kept():
    folder = EXPORTS / "autoround-w4-symmetric"
    scales = [unpacked(one).scales for one in packed_linears(folder, read_packing(folder)).values()]
    assert any((one < 0).any() for one in scales)


def other_shape(held):
    name = "model.layers.0.mlp.up_proj"
    for part in ("qweight", "qzeros", "scales"):
        held[f"{name}.{part}"] = held[f"{name}.{part}"][:, : held[f"{name}.{part}"].shape[1] // 2]


def no_scales(held):
    del held["model.layers.1.mlp.up_proj.scales"]


def uneven_groups(held):
    held["model.layers.0.mlp.up_proj.g_idx"][:3] = 1


def zero_scale(held):
    held["model.layers.0.mlp.up_proj.scales"][0, 0] = 0


def foreign_tensor(held):
    held["model.layers.0.mlp.gain.weight"] = torch.ones(3)


def zero_biases(held):
    held["model.layers.0.mlp.up_proj.bias"] = torch.zeros(128)


def no_norm(held):
    del held["model.norm.weight"]


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (other_shape, r"base must be made from the float model, with model.layers.0.mlp.up_proj of "
         r"128 x 64; in .*altered there it is 64 x 64: give an export of this model, or the model"),
        (no_scales, r"base must hold qweight, qzeros, scales of model.layers.1.mlp.up_proj; "
         r".*altered: it lacks scales: fetch or save the export again"),
        (uneven_groups, r"base must hold a g_idx with 32 columns for each of 2 groups; "
         r"model.layers.0.mlp.up_proj of .*: it has not: fetch or save"),
        (zero_scale, r"base must hold scales that are finite and not zero; "
         r"model.layers.0.mlp.up_proj of .*: some are not: fetch or save"),
        (foreign_tensor, r"base must hold weights of the model alone; in .*altered "
         r"model.layers.0.mlp.gain.weight \[3\] is none of them: give an export of this model"),
        (no_norm, r"base must hold every weight of the model; in .*altered model.norm.weight is a"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tensors, sentence, copied):
    folder = copied("gptqmodel-w4-v1", tensors)
    with pytest.raises(InputError, match=sentence):
        read_whole(folder)


def read_whole(folder):
    require_made_of(read_base(str(folder)), FLOAT, linear_shapes(FLOAT))
    base = BaseWeights(folder, FLOAT)
    return [base.linear(name) for name in base.linears]


def test_biases_of_zeros_that_the_model_has_no_place_for_are_passed_over(copied):
    folder = copied("gptqmodel-w4-v1", zero_biases)
    assert len(BaseWeights(folder, FLOAT).linears) == 14


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ({"quant_method": "fp8"}, "is quantized with fp8"),
        ({"quant_method": "bitnet"}, "is quantized with bitnet"),
        ({"checkpoint_format": "marlin"}, "is gptq in the layout marlin"),
        ({"pack_dtype": "int16"}, "is gptq with pack_dtype int16"),
        ({"quant_method": "awq", "version": "gemv"}, "is awq with version gemv"),
        ({"quant_method": "auto-round", "data_type": "mx"}, "is auto-round with data_type mx"),
        ({"quant_method": "auto-round", "data_type": "int", "act_bits": 8},
         "is auto-round with activations of 8 bits"),
        ({"quant_method": "compressed-tensors", "config_groups": {"": {"format": "int-quantized"}}},
         "is compressed-tensors in the format int-quantized"),
    ],
)  # fmt: skip
def test_a_layout_that_is_not_read_is_refused(entries, found, copied):
    folder = copied("gptqmodel-w4-v1", config=lambda own: own.update(entries))
    with pytest.raises(InputError) as raised:
        read_base(str(folder))
    assert raised.value.sentence == (
        "base must be a checkpoint with codes on grids (gptq, awq, auto-round, or "
        f"compressed-tensors in the format pack-quantized); {folder} {found}: give another export "
        "of the model."
    )


def test_a_float_model_is_no_base():
    with pytest.raises(InputError, match="is not quantized, or does not say how"):
        read_base(str(FLOAT))


def test_sorted_columns_need_a_format_that_holds_their_order():
    base = read_base(str(EXPORTS / "gptqmodel-w4-act-order"))
    require_order(ExportConfig(format="gptq"), base)
    with pytest.raises(InputError, match=r"export.format must be gptq for a base whose groups"):
        require_order(ExportConfig(), base)


@pytest.mark.parametrize("folder", ONE_WIDTH, ids=named)
def test_an_evaluation_opens_it_with_the_same_weights(folder):
    wanted = json.loads((folder / "dequantized.json").read_text())
    model = load_quantized(folder, torch.float16, "cpu").state_dict()
    for name in (one for one in wanted if one.endswith("_proj.weight")):
        assert digest(model[name] + 0.0) == digest_in_half(folder, name)


def digest_in_half(folder, name):
    linear = packed_linears(folder, read_packing(folder))[name.removesuffix(".weight")]
    return digest(unpacked(linear).dequantize().half() + 0.0)
