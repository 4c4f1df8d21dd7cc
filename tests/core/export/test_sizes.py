"""The size of an export against widths and shapes, and what became of every linear."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from normtweak_core.errors import VerificationError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.sizes import SizeCheck, size_check
from normtweak_core.export.writer import write_export, write_ternary_export
from tests.core.model.families import save
from tests.tiny_exports import quantize_all, read_json, save_tiny_model, ternary_all, tiny_config


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: save_tiny_model(folder / name, tiny_config(name)) for name in ("llama", "neox")}


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untied") / "model"
    return save_tiny_model(folder, tiny_config("llama", tie_word_embeddings=False))


def quantized(out, source, bits=3, group_size=32, symmetric=False, form="auto", layers=None):
    layers = layers or quantize_all(source, bits, group_size, symmetric)
    config = ExportConfig(format=form, dtype="float16")
    return write_export(out, source, layers, {}, config, dtype=torch.float16).folder


@pytest.mark.parametrize("family", ["llama", "neox"])
@pytest.mark.parametrize("form", ["compressed-tensors", "gptq"])
@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric"), [(2, 32, False), (3, 64, True), (4, 32, True)]
)
def test_each_byte_of_an_export_is_predicted(
    tmp_path, sources, family, form, bits, group_size, symmetric
):
    folder = quantized(tmp_path / "out", sources[family], bits, group_size, symmetric, form)
    found = size_check(folder, sources[family])
    found.require_sound()
    assert found.stored_bytes == found.predicted_bytes
    stored = load_file(folder / "model.safetensors").values()
    assert found.stored_bytes == sum(one.nbytes for one in stored)
    assert found.missing == found.differing == found.twice == []
    assert found.in_words().startswith("100 % of linears accounted for: ")


@pytest.mark.parametrize("family", ["llama", "neox"])
@pytest.mark.parametrize("gains", [True, False])
def test_each_byte_of_a_ternary_export_is_predicted(tmp_path, sources, family, gains):
    layers = ternary_all(sources[family], torch.float32, gains=gains)
    config = ExportConfig(dtype="float32")
    record = write_ternary_export(
        tmp_path / "out", sources[family], layers, {}, config, rms_norm_eps=1e-5
    )
    found = size_check(record.folder, sources[family])
    found.require_sound()
    assert found.stored_bytes == found.predicted_bytes
    assert len(found.quantized) == len(layers)


def test_a_linear_that_stays_in_float_says_why(tmp_path, untied):
    layers = quantize_all(untied, 3, 32, False)
    whole = size_check(quantized(tmp_path / "whole", untied, layers=layers), untied)
    assert whole.kept == {"lm_head": "outside the blocks"}
    left = "model.layers.1.mlp.up_proj"
    some = {name: layer for name, layer in layers.items() if name != left}
    found = size_check(quantized(tmp_path / "some", untied, layers=some), untied)
    assert found.kept == {left: "no forward pass calls it", "lm_head": "outside the blocks"}
    assert found.in_words() == (
        "100 % of linears accounted for: 13 quantized, 1 in float (no forward pass calls it), "
        "1 in float (outside the blocks)"
    )


def test_convolutions_and_matrices_of_a_state_are_told(tmp_path):
    source = save("mamba", tmp_path / "model")
    layers = quantize_all(source, 3, None, False)
    left = {name: one for name, one in layers.items() if not name.endswith("dt_proj")}
    found = size_check(quantized(tmp_path / "out", source, layers=left), source)
    found.require_sound()
    assert found.in_words() == (
        "100 % of linears accounted for: 9 quantized, 3 in float (no forward pass calls it), "
        "1 in float (tied to the embedding); "
        "beside them in float: 3 mixer.A_log, 3 mixer.D, 3 mixer.conv1d.weight"
    )


def test_a_tied_head_is_told_and_is_not_stored(tmp_path):
    source = save_tiny_model(tmp_path / "tied", tiny_config("llama", tie_word_embeddings=True))
    found = size_check(quantized(tmp_path / "out", source), source)
    assert found.kept == {"lm_head": "tied to the embedding"}
    found.require_sound()


def test_a_tensor_that_nobody_expects_and_one_of_another_size_are_found(tmp_path, sources):
    folder = quantized(tmp_path / "out", sources["llama"])
    path = folder / "model.safetensors"
    tensors = load_file(path)
    scales = "model.layers.0.mlp.up_proj.weight_scale"
    save_file(
        tensors | {"stray": torch.zeros(3), scales: tensors[scales].float()},
        path,
        metadata={"format": "pt"},
    )
    found = size_check(folder, sources["llama"])
    half = tensors[scales].nbytes
    assert found.differing == [
        f"{scales} takes {2 * half} instead of {half}",
        "stray takes 12 instead of 0",
    ]
    assert found.stored_bytes - found.predicted_bytes == half + 12
    with pytest.raises(VerificationError, match=r"must take \d+ bytes; they take \d+: model"):
        found.require_sound()


def test_a_linear_that_nothing_is_known_of_is_found(tmp_path, sources):
    folder = quantized(tmp_path / "out", sources["llama"])
    gone = "model.layers.0.self_attn.q_proj"
    manifest = read_json(folder / "normtweak.json")
    del manifest["tensors"][f"{gone}.weight"]
    (folder / "normtweak.json").write_text(json.dumps(manifest))
    found = size_check(folder, sources["llama"])
    assert found.missing == [gone]
    assert found.in_words().startswith("93.33 % of linears accounted for: 13 quantized")
    with pytest.raises(VerificationError, match=rf"every linear .* {gone} is not"):
        dataclasses.replace(found, differing=[]).require_sound()


def test_a_matrix_that_is_stored_twice_is_found(tmp_path, untied):
    source = tmp_path / "twice"
    shutil.copytree(untied, source)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    found = size_check(quantized(tmp_path / "out", source), source)
    assert [sorted(names) for names in found.twice] == [
        ["lm_head.weight", "model.embed_tokens.weight"]
    ]
    found.require_sound()  # a waste, not a fault


def test_a_model_without_an_account_says_so():
    assert SizeCheck(0, 0, ["a"], {"b": "why"}, ["c", "d"]).in_words() == (
        "50 % of linears accounted for: 1 quantized, 1 in float (why)"
    )
