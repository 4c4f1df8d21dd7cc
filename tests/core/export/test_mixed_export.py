"""Linears of several widths in one export: what is stored, what stock readers open, refusals."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from normtweak_core.errors import InputError
from normtweak_core.evaluate.size import quantized_storage
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.formats.checks import LinearShape, check_exportable
from normtweak_core.export.formats.scheme import recorded_scheme
from normtweak_core.export.loading import load_export
from normtweak_core.export.sizes import size_check
from normtweak_core.export.writer import write_export
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.widths.budget import stored_bits
from tests.tiny_exports import quantize_all, read_json, save_tiny_model, tiny_config

IDS = (torch.arange(2 * 16).reshape(2, 16) * 7919 + 13) % 256
WIDTHS = (2, 3, 4, 8)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        name: save_tiny_model(folder / name, tiny_config(name)) for name in ("llama", "neox", "opt")
    }


def mixed_layers(source, group_size, symmetric):
    """Every width, in turn."""
    by_width = {bits: quantize_all(source, bits, group_size, symmetric) for bits in WIDTHS}
    return {name: by_width[WIDTHS[i % 4]][name] for i, name in enumerate(by_width[2])}


def write(out, source, layers, **changes):
    widths = {name: one.bits for name, one in layers.items()} | changes
    return write_export(out, source, layers, {}, ExportConfig(), widths=widths)


@pytest.mark.parametrize(
    ("family", "group_size", "symmetric"),
    [
        ("llama", 32, False),
        ("llama", None, False),
        ("llama", 32, True),
        ("neox", None, True),
        ("neox", 32, False),
        ("opt", 32, False),
    ],
)
def test_stock_transformers_computes_with_every_width(
    family, group_size, symmetric, sources, tmp_path
):
    source, layers = sources[family], mixed_layers(sources[family], group_size, symmetric)
    record = write(tmp_path / "out", source, layers)
    dense = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16)
    with torch.no_grad():
        for name, weight in layers.items():
            dense.get_submodule(name).weight.copy_(weight.dequantize())
    stock, info = AutoModelForCausalLM.from_pretrained(record.folder, output_loading_info=True)
    assert not any(info.values())
    ours = load_export(record.folder, source, torch.float16, "cpu")
    with torch.inference_mode():
        wanted, found = dense(IDS).logits, stock(IDS).logits
    assert torch.equal(found, wanted)
    for name, weight in layers.items():
        exact = weight.dequantize().to(torch.float16)
        assert torch.equal(ours.get_submodule(name).weight, exact), name
    size_check(record.folder, source).require_sound()


def test_widths_are_told_wherever_an_export_speaks_of_itself(sources, tmp_path):
    layers = mixed_layers(sources["llama"], 32, False)
    record = write(tmp_path / "out", sources["llama"], layers)
    widths = {name: one.bits for name, one in layers.items()}
    manifest = read_json(record.folder / "normtweak.json")
    assert manifest["export"] == {
        "format": "compressed-tensors",
        "dtype": "float16",
        "widths": widths,
        "group_size": 32,
        "symmetric": False,
    }
    described = read_json(record.folder / "config.json")["quantization_config"]
    groups = described["config_groups"].values()
    found = {name: one["weights"]["num_bits"] for one in groups for name in one["targets"]}
    assert found == widths
    assert "dequantize" not in described
    card = (record.folder / "README.md").read_text()
    counts = "4 of 2 bits, 4 of 3 bits, 3 of 4 bits, 3 of 8 bits"
    assert f"linear layers of mixed widths ({counts}; asymmetric, groups of 32)" in card
    assert "tags: [quantized, mixed-bit, compressed-tensors]" in card
    assert "compressed-tensors 0.20 or newer (earlier releases" in card


def test_blocks_of_whole_rows_are_no_wider_than_the_rows(sources, tmp_path):
    layers = mixed_layers(sources["llama"], None, False)
    record = write(tmp_path / "out", sources["llama"], layers)
    described = read_json(record.folder / "config.json")["quantization_config"]
    blocks = {
        name: group["weights"]["block_structure"]
        for group in described["config_groups"].values()
        for name in group["targets"]
    }
    assert blocks == {name: [1, one.codes.shape[1]] for name, one in layers.items()}
    assert recorded_scheme(read_json(record.folder / "normtweak.json")["export"]) == record.scheme


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, None])
def test_the_budget_counts_what_the_files_hold(group_size, symmetric, sources, tmp_path):
    layers = mixed_layers(sources["llama"], group_size, symmetric)
    record = write(tmp_path / "out", sources["llama"], layers)
    config = QuantizationConfig(bits={"average": 4}, group_size=group_size, symmetric=symmetric)
    counted = sum(
        stored_bits([tuple(one.codes.shape)], one.bits, config, "auto", "float16")
        for one in layers.values()
    )
    assert quantized_storage(record.folder).stored_bits == counted


def test_widths_that_turn_out_alike_are_written_as_one(sources, tmp_path):
    layers = quantize_all(sources["llama"], 3, 32, False)
    plain = write_export(tmp_path / "plain", sources["llama"], layers, {}, ExportConfig())
    assert write(tmp_path / "told", sources["llama"], layers).payload_sha256 == plain.payload_sha256


def test_a_width_that_was_not_announced_is_refused(sources, tmp_path):
    layers = mixed_layers(sources["llama"], 32, False)
    name = "model.layers.0.self_attn.q_proj"
    with pytest.raises(ValueError, match=rf"{name} must have 4 bits as announced; got 2"):
        write(tmp_path / "out", sources["llama"], layers, **{name: 4})


SHAPES = {"model.layers.0.a": LinearShape(64, 64), "model.layers.0.b": LinearShape(64, 128)}
EXPERTS = {"model.layers.0.mlp.experts.0.up_proj": LinearShape(64, 64)}


@pytest.mark.parametrize(
    ("export", "average", "linears", "told"),
    [
        ("gptq", 3, SHAPES, r"bits must be one width for export.format: gptq, of which "
         r"transformers reads no other; found 3 bits on average, of 2, 3, 4, 8: use "),
        ("auto", 3, EXPERTS, r"must be one width for a mixture of experts, .*: set one width, or "
         r"choose a dense model"),
        ("auto", 2.1, SHAPES, r"average must be from 2\.7709 to 8\.7708, .*; found 2\.1"),
        ("auto", 9, SHAPES, r"average must be from 2\.7709 to 8\.7708, .*; found 9: set bits to 8"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_is_refused_before_any_work(export, average, linears, told):
    config = QuantizationConfig(bits={"average": average}, group_size=32)
    with pytest.raises(InputError, match=told):
        check_exportable(ExportConfig(format=export), config, linears, reader_available=True)
