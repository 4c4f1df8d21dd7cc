"""The stock reader finds every weight bit for bit, and every fault; in this process, for speed."""

import ast
import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from normtweak_core.export.config import ExportConfig
from normtweak_core.export.formats import table
from normtweak_core.export.verification import reader
from normtweak_core.export.writer import write_export
from tests.tiny_exports import quantize_all, read_json, save_tiny_model, tiny_config

MODELS = {
    "llama": tiny_config("llama"),
    "neox": tiny_config("neox"),
    # Widths that fill no words and no groups, as stories260K has them.
    "odd": LlamaConfig(
        vocab_size=256,
        hidden_size=36,
        intermediate_size=51,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    ),
}
CASES = [
    (family, bits, group_size, symmetric, "float16")
    for family, group_size in (("llama", 32), ("neox", None))
    for bits in (2, 3, 4, 8)
    for symmetric in (True, False)
]
CASES += [("odd", 3, None, False, "bfloat16"), ("odd", 2, None, True, "float32")]
Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: save_tiny_model(folder / name, config) for name, config in MODELS.items()}


def export(out, source, layers, replaced=None, dtype="float16"):
    write_export(out, source, layers, replaced or {}, ExportConfig(dtype=dtype))
    return out


@pytest.fixture
def exported(tmp_path, sources):
    layers = quantize_all(sources["llama"], 4, 32, False)
    return export(tmp_path / "out", sources["llama"], layers)


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def found(folder):
    return [(problem["what"], problem["name"]) for problem in reader.examine(folder)["problems"]]


@pytest.mark.parametrize(("family", "bits", "group_size", "symmetric", "dtype"), CASES)
def test_a_faithful_export_has_no_problem_and_equal_logits(
    tmp_path, sources, family, bits, group_size, symmetric, dtype
):
    layers = quantize_all(sources[family], bits, group_size, symmetric, getattr(torch, dtype))
    report = reader.examine(export(tmp_path / "out", sources[family], layers, dtype=dtype))
    assert report["problems"] == []
    assert report["logits"] == {"difference": 0.0, "argmax_agreement": 1.0}
    assert report["tensors"] == len(read_json(tmp_path / "out" / "normtweak.json")["tensors"])
    assert report["tokenizer"] is True


@pytest.mark.parametrize(("symmetric", "dtype"), [(True, "float16"), (False, "float32")])
def test_a_load_in_float32_is_the_product(tmp_path, sources, symmetric, dtype):
    layers = quantize_all(sources["llama"], 3, 32, symmetric, getattr(torch, dtype))
    folder = export(tmp_path / "out", sources["llama"], layers, dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model(torch.zeros((1, 2), dtype=torch.int64))  # unpacks
    for name, layer in layers.items():
        weight = model.get_submodule(name).weight
        expected = layer.scales.repeat_interleave(32, 1).double() * (
            layer.codes.double() - layer.zeros.repeat_interleave(32, 1).double()
        )
        if dtype == "float16":
            assert torch.equal(weight.double(), expected), name
        else:  # a float32 scale leaves no room for the product
            assert torch.equal(weight, expected.float()), name


def test_layers_left_float_and_tweaked_norms_are_found(tmp_path, sources, seeded):
    layers = quantize_all(sources["llama"], 2, 64, False)
    del layers[Q0]
    gain = torch.rand(64, generator=seeded()) + 0.5
    name = "model.layers.1.post_attention_layernorm.weight"
    folder = export(tmp_path / "out", sources["llama"], layers, {name: gain})
    assert found(folder) == []
    entries = read_json(folder / "normtweak.json")["tensors"]
    assert not entries[f"{Q0}.weight"]["quantized"]


def test_a_flipped_nibble_is_found(exported):
    def flip(tensors):
        tensors[f"{Q0}.weight_packed"][3, 2] ^= 1 << 4

    rewrite(exported, flip)
    assert found(exported)[:2] == [("weight", f"{Q0}.weight"), ("file", "model.safetensors")]


def test_swapped_scales_are_found(exported):
    def swap(tensors):
        scales = tensors[f"{Q0}.weight_scale"]
        scales[[0, 1]] = scales[[1, 0]]

    rewrite(exported, swap)
    assert ("weight", f"{Q0}.weight") in found(exported)


def test_a_dropped_tensor_is_found(exported):
    name = "model.layers.1.input_layernorm.weight"
    rewrite(exported, lambda tensors: tensors.pop(name))
    assert found(exported)[0] == ("loading", name)


def test_an_unknown_tensor_is_found(exported):
    rewrite(exported, lambda tensors: tensors.update({"model.extra.weight": torch.ones(3)}))
    assert found(exported)[0] == ("loading", "model.extra.weight")


def test_an_edited_tokenizer_is_found(exported):
    path = exported / "tokenizer.json"
    text = path.read_text()
    assert '"T": 51' in text
    path.write_text(text.replace('"T": 51', '"T": 52').replace('"U": 52', '"U": 51'))
    assert found(exported) == [
        ("file", "tokenizer.json"),
        ("tokenizer", "ids"),
        ("tokenizer", "decoded"),
        ("tokenizer", "marked_ids"),
        ("tokenizer", "unmarked"),
        ("tokenizer", "vocabulary_sha256"),
    ]


def test_a_wrong_zero_point_convention_is_found(tmp_path, sources, monkeypatch):
    good = table.COMPRESSED_TENSORS

    def minus_one(weight, dtype):
        zeros = weight.zeros.clamp_min(1) - 1
        return good.pack(dataclasses.replace(weight, zeros=zeros), dtype)

    monkeypatch.setattr(table, "COMPRESSED_TENSORS", dataclasses.replace(good, pack=minus_one))
    layers = quantize_all(sources["neox"], 3, 32, False)
    problems = found(export(tmp_path / "out", sources["neox"], layers))
    # Files and reference logits come from the same wrong writer; the weights do not.
    assert {name for what, name in problems if what == "weight"} == {
        f"{name}.weight" for name in layers
    }
    assert {what for what, _ in problems} == {"weight"}


def test_a_changed_config_shows_in_the_logits(exported):
    path = exported / "config.json"
    path.write_text(path.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1.0'))
    assert found(exported) == [("file", "config.json"), ("logits", "probe tokens")] or (
        "argmax",
        "probe tokens",
    ) in found(exported)


def test_the_reader_imports_only_the_standard_library_and_what_it_judges_with():
    tree = ast.parse(Path(reader.__file__).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module.split(".")[0])
    judges = {"torch", "safetensors", "transformers", "compressed_tensors"}
    assert names - set(sys.stdlib_module_names) == judges
