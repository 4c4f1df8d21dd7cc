"""Stock transformers finds every tensor and every output of a ternary export, and every fault."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from normtweak_core.errors import VerificationError
from normtweak_core.export import writer
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.formats import table
from normtweak_core.export.verification import reader
from normtweak_core.export.verification.verify import verify_export
from normtweak_core.export.writer import write_ternary_export
from tests.tiny_exports import read_json, save_tiny_model, ternary_all, tiny_config

Q0 = "model.layers.0.self_attn.q_proj"
UP = "gpt_neox.layers.1.mlp.dense_h_to_4h"
FILE = ("file", "model.safetensors")


@pytest.fixture(autouse=True)
def eager():
    """Keep the stock linears from being compiled, as the reader's own process does."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    names = ("llama", "neox", "opt")
    return {name: save_tiny_model(folder / name, tiny_config(name)) for name in names}


def export(out, source, layers, replaced=None, dtype="float32", **options):
    config = ExportConfig(dtype=dtype)
    options = {"rms_norm_eps": 1e-5} | options
    write_ternary_export(out, source, layers, replaced or {}, config, **options)
    return out


@pytest.fixture
def exported(tmp_path, sources):
    return export(tmp_path / "out", sources["llama"], ternary_all(sources["llama"]))


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def found(folder):
    return [(problem["what"], problem["name"]) for problem in reader.examine(folder)["problems"]]


@pytest.mark.parametrize("family", ["llama", "neox", "opt"])
@pytest.mark.parametrize("gains", [True, False])
def test_in_float32_every_output_is_equal(tmp_path, sources, family, gains):
    layers = ternary_all(sources[family], gains=gains)
    report = reader.examine(export(tmp_path / "out", sources[family], layers))
    assert report["problems"] == []
    assert report["layers"] == {"difference": 0.0, "tolerance": 1e-5}
    assert report["logits"] == {"difference": 0.0, "argmax_agreement": 1.0}
    assert report["tensors"] == len(read_json(tmp_path / "out" / "normtweak.json")["tensors"])


@pytest.mark.parametrize(("dtype", "measured"), [("float16", 2e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("family", ["llama", "neox", "opt"])
def test_in_half_precision_outputs_are_close(tmp_path, sources, family, dtype, measured):
    layers = ternary_all(sources[family], getattr(torch, dtype))
    report = reader.examine(export(tmp_path / "out", sources[family], layers, dtype=dtype))
    assert report["problems"] == []
    assert 0 < report["layers"]["difference"] < measured < report["layers"]["tolerance"]


def test_layers_left_float_and_replaced_norms_are_found(tmp_path, sources, seeded):
    layers = ternary_all(sources["llama"])
    del layers[Q0]
    gain = torch.rand(64, generator=seeded())
    name = "model.layers.1.post_attention_layernorm.weight"
    folder = export(tmp_path / "out", sources["llama"], layers, {name: gain})
    assert found(folder) == []
    assert read_json(folder / "normtweak.json")["tensors"][f"{Q0}.weight"]["shape"] == [64, 64]


def test_a_flipped_code_is_found_by_name(exported):
    def flip(tensors):
        tensors[f"{Q0}.weight"][3, 2] ^= 1 << 4

    rewrite(exported, flip)
    assert found(exported)[:1] == [("weight", f"{Q0}.weight")]
    assert FILE in found(exported)


def test_an_altered_scale_and_an_altered_gain_are_found_in_weight_and_output(exported):
    def change(tensors):
        tensors[f"{Q0}.weight_scale"] *= 1.001
        tensors["model.layers.1.mlp.down_proj.rms_norm.weight"][5] *= 2

    rewrite(exported, change)
    assert [entry for entry in found(exported) if entry[0] in ("weight", "layer")] == [
        ("weight", f"{Q0}.weight_scale"),
        ("weight", "model.layers.1.mlp.down_proj.rms_norm.weight"),
        ("layer", Q0),
        ("layer", "model.layers.1.mlp.down_proj"),
    ]


@pytest.mark.parametrize("part", ["weight", "weight_scale", "rms_norm.weight"])
def test_a_dropped_tensor_is_found(exported, part):
    rewrite(exported, lambda tensors: tensors.pop(f"{Q0}.{part}"))
    assert found(exported)[0] == ("loading", f"{Q0}.{part}")


def test_a_tensor_that_the_manifest_does_not_know_is_found(exported):
    path = exported / "normtweak.json"
    manifest = read_json(path)
    del manifest["tensors"][f"{Q0}.rms_norm.weight"]
    path.write_text(json.dumps(manifest))
    assert found(exported) == [("weight", f"{Q0}.rms_norm.weight")]


def test_a_reader_that_leaves_the_norms_out_is_found(exported):
    path = exported / "config.json"
    config = read_json(path)
    config["quantization_config"]["use_rms_norm"] = False
    path.write_text(json.dumps(config))
    problems = found(exported)
    assert ("layer", Q0) in problems
    assert ("weight", f"{Q0}.rms_norm.weight") in problems


def test_a_missing_reference_output_is_found(exported):
    path = exported / "verify" / "probe.safetensors"
    probe = load_file(path)
    save_file({n: t for n, t in probe.items() if n != f"output/{Q0}"}, path)
    assert found(exported) == [("layer", Q0)]


def test_a_wrong_order_of_rows_and_a_scale_that_multiplies_show_in_the_outputs(
    tmp_path, sources, monkeypatch
):
    # Hashes and bytes come from the same wrong writer; what the stock linear computes does not.
    good = table.BITNET

    def interleaved(layer, dtype):
        codes = layer.codes.reshape(-1, 4, layer.codes.shape[1]).transpose(0, 1)
        return good.pack(dataclasses.replace(layer, codes=codes.reshape(layer.codes.shape)), dtype)

    def uninterleaved(tensors, scheme):
        layer = good.unpack(tensors, scheme)
        codes = layer.codes.reshape(4, -1, layer.codes.shape[1]).transpose(0, 1)
        return dataclasses.replace(layer, codes=codes.reshape(layer.codes.shape))

    def inverse(layer, dtype):
        scale = (1 / layer.weight_scale).to(dtype).float()
        return good.pack(dataclasses.replace(layer, weight_scale=scale), dtype)

    def uninverse(tensors, scheme):
        layer = good.unpack(tensors, scheme)
        return dataclasses.replace(layer, weight_scale=1 / layer.weight_scale)

    layers = ternary_all(sources["neox"])
    for pack, unpack in ((interleaved, uninterleaved), (inverse, uninverse)):
        wrong = dataclasses.replace(good, pack=pack, unpack=unpack)
        monkeypatch.setattr(writer, "BITNET", wrong)
        monkeypatch.setattr(table, "BITNET", wrong)
        folder = export(tmp_path / pack.__name__, sources["neox"], layers)
        problems = found(folder)
        assert {name for what, name in problems if what == "layer"} == set(layers)
        assert {what for what, _ in problems} <= {"layer", "logits", "argmax"}


def test_a_real_process_verifies_the_export_and_names_a_fault(tmp_path, sources):
    layers = ternary_all(sources["neox"], torch.float16)
    folder = export(tmp_path / "out", sources["neox"], layers, dtype="float16")
    report = verify_export(folder)
    assert (report.format, report.num_quantized) == ("bitnet", 8)
    assert report.num_tensors == len(read_json(folder / "normtweak.json")["tensors"])
    assert (report.logit_statistic, report.logit_tolerance) == ("mean", 0.1)
    assert report.layer_difference < 2e-3 < report.layer_tolerance == 1e-2
    assert report.tokenizer

    def flip(tensors):
        tensors[f"{UP}.weight"][0, 0] ^= 1

    rewrite(folder, flip)
    with pytest.raises(VerificationError, match=rf"weight of {UP}\.weight: expected [0-9a-f]+…"):
        verify_export(folder)
