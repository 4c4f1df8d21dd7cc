"""The folder of a ternary model: what is stored, what the manifest says of it, what is refused."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from normtweak_core.errors import InputError
from normtweak_core.evaluate.size import quantized_storage
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.formats.scheme import TernaryScheme
from normtweak_core.export.manifest import tensor_sha256
from normtweak_core.export.payload import payload_sha256
from normtweak_core.export.writer import write_export, write_ternary_export
from normtweak_core.ternary.weight import TernaryLinear
from tests.tiny_exports import (
    quantize_all,
    read_json,
    save_tiny_model,
    ternary_all,
    tiny_config,
)

NORM = "model.layers.0.input_layernorm.weight"
DOWN = "model.layers.1.mlp.down_proj"
IN = "gpt_neox.layers.0.mlp.dense_h_to_4h"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    names = ("llama", "neox", "opt")
    return {name: save_tiny_model(folder / name, tiny_config(name)) for name in names}


@pytest.fixture(scope="module")
def layers(sources):
    return ternary_all(sources["llama"])


def write(out, source, layers, replaced=None, form="auto", dtype="float32", **options):
    config = ExportConfig(format=form, dtype=dtype)
    return write_ternary_export(out, source, layers, replaced or {}, config, **EPS | options)


EPS = {"rms_norm_eps": 1e-5}


def test_every_linear_is_stored_as_bytes_scale_gain_and_bias(tmp_path, sources):
    layers = ternary_all(sources["neox"], torch.float16)
    record = write(tmp_path / "out", sources["neox"], layers, dtype="float16")
    assert (record.format, record.dtype) == ("bitnet", "float16")
    assert record.scheme == TernaryScheme(True, 1e-5)
    stored = load_file(record.folder / "model.safetensors")
    source = load_file(sources["neox"] / "model.safetensors")
    source["lm_head.weight"] = source.pop("embed_out.weight")  # as transformers 5 calls it
    linears = {f"{name}.{part}" for name in layers for part in ("weight", "bias")}
    for name in source.keys() - linears:
        assert torch.equal(stored[name], source[name].half()), name
    extra = {f"{name}.{part}" for name in layers for part in ("weight_scale", "rms_norm.weight")}
    assert stored.keys() == source.keys() | extra
    layer = layers[IN]
    quarters = [(stored[f"{IN}.weight"] >> shift) & 3 for shift in (0, 2, 4, 6)]
    assert torch.equal(torch.cat(quarters).float() - 1, layer.codes.float())
    assert stored[f"{IN}.weight_scale"].tolist() == [layer.weight_scale]
    assert torch.equal(stored[f"{IN}.rms_norm.weight"], layer.gain.half())
    assert torch.equal(stored[f"{IN}.bias"], layer.bias.half())


def test_the_manifest_hashes_the_tensors_as_stored(tmp_path, sources, layers):
    record = write(tmp_path / "out", sources["llama"], layers, details={"recipe": {"name": "x"}})
    manifest = read_json(record.folder / "normtweak.json")
    stored = load_file(record.folder / "model.safetensors")
    assert {name: entry["sha256"] for name, entry in manifest["tensors"].items()} == {
        name: tensor_sha256(tensor) for name, tensor in stored.items()
    }
    assert manifest["tensors"][f"{DOWN}.weight"]["shape"] == [16, 128]
    quantized = {name for name, entry in manifest["tensors"].items() if entry["quantized"]}
    assert quantized == {f"{name}.weight" for name in layers}
    assert manifest["export"] == {
        "format": "bitnet",
        "dtype": "float32",
        "rms_norm": True,
        "rms_norm_eps": 1e-5,
    }
    assert manifest["recipe"] == {"name": "x"}
    assert manifest["probe"]["layers"] == {"tolerance": 1e-5, "kept_outputs": 64}
    assert manifest["payload_sha256"] == record.payload_sha256 == payload_sha256(record.folder)


@pytest.mark.parametrize(
    ("family", "kept"),
    [
        ("llama", ["lm_head"]),
        ("neox", ["lm_head"]),
        ("opt", ["lm_head", "model.decoder.project_in", "model.decoder.project_out"]),
    ],
)
def test_the_config_names_the_linears_that_stay_float(tmp_path, sources, family, kept):
    layers = ternary_all(sources[family], gains=False)
    folder = write(tmp_path / "out", sources[family], layers).folder
    quantization = read_json(folder / "config.json")["quantization_config"]
    assert quantization["modules_to_not_convert"] == kept
    assert quantization["use_rms_norm"] is False


def test_bits_per_weight_counts_codes_scale_and_gain_but_no_bias(tmp_path, sources):
    layers = ternary_all(sources["neox"], torch.float16)
    record = write(tmp_path / "out", sources["neox"], layers, dtype="float16")
    weights = sum(layer.codes.numel() for layer in layers.values())
    gains = sum(layer.codes.shape[1] for layer in layers.values())
    assert record.bits_per_weight == (2 * weights + 16 * len(layers) + 16 * gains) / weights
    assert quantized_storage(record.folder).num_linears == len(layers)


def test_shards_and_repeats_give_the_same_tensors_and_bytes(tmp_path, sources, layers):
    first = write(tmp_path / "a", sources["llama"], layers)
    second = write(tmp_path / "b", sources["llama"], layers, form="bitnet", details={"run": "2"})
    assert first.payload_sha256 == second.payload_sha256
    parts = write(tmp_path / "c", sources["llama"], layers, max_shard_bytes=20_000).folder
    stored = {k: v for f in parts.glob("*.safetensors") for k, v in load_file(f).items()}
    single = load_file(first.folder / "model.safetensors")
    assert stored.keys() == single.keys()
    assert all(torch.equal(stored[name], single[name]) for name in single)


def test_gains_and_norms_that_are_one_tensor_are_stored_under_each_name(tmp_path, sources, layers):
    shared, one = dict(layers), torch.full((64,), 1.5)
    names = [name for name in layers if name.endswith(("q_proj", "k_proj", "v_proj"))]
    for name in names:
        shared[name] = dataclasses.replace(layers[name], gain=one)
    folder = write(tmp_path / "out", sources["llama"], shared, {NORM: one}).folder
    stored = load_file(folder / "model.safetensors")
    for name in [NORM, *(f"{name}.rms_norm.weight" for name in names)]:
        assert torch.equal(stored[name], one), name


def test_replaced_tensors_take_the_place_of_the_sources(tmp_path, sources, layers, seeded):
    gain = torch.rand(64, generator=seeded())
    folder = write(tmp_path / "out", sources["llama"], layers, {NORM: gain}).folder
    assert torch.equal(load_file(folder / "model.safetensors")[NORM], gain)


def test_the_card_says_what_the_linears_are(tmp_path, sources, layers):
    text = (write(tmp_path / "out", sources["llama"], layers).folder / "README.md").read_text()
    assert "ternary linear layers (-1, 0 and 1 times one scale, an RMSNorm before each)" in text
    assert "tags: [quantized, ternary, bitnet]" in text
    assert "Needs transformers and accelerate." in text


def test_the_probe_of_a_wide_linear_keeps_few_outputs(tmp_path, sources, layers):
    folder = write(tmp_path / "out", sources["llama"], layers).folder
    probe = load_file(folder / "verify" / "probe.safetensors")
    assert probe["output/model.layers.0.mlp.up_proj"].shape == (2, 64)
    assert probe["output/model.layers.0.self_attn.k_proj"].shape == (2, 32)
    assert {n.removeprefix("input/") for n in probe if n.startswith("input/")} == set(layers)


def test_gains_before_some_linears_only_are_refused(tmp_path, sources, layers):
    mixed = layers | {DOWN: dataclasses.replace(layers[DOWN], gain=None)}
    message = rf"share one scheme; {DOWN} has no RMSNorm .* before it have an RMSNorm"
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "out", sources["llama"], mixed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"codes": torch.zeros(64, 96, dtype=torch.int8), "gain": torch.ones(96)},
            r"\(64, 128\) codes; got \(64, 96\)",
        ),
        ({"bias": torch.zeros(64)}, r"must have no bias .* got a bias of shape \(64,\)"),
    ],
)
def test_a_layer_that_does_not_belong_is_refused(tmp_path, sources, layers, change, message):
    broken = layers | {DOWN: dataclasses.replace(layers[DOWN], **change)}
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "out", sources["llama"], broken)


def test_a_gain_of_another_length_is_refused(tmp_path, sources, layers):
    layer = dataclasses.replace(layers[DOWN])
    object.__setattr__(layer, "gain", torch.ones(64))  # only tests check annotations
    with pytest.raises(ValueError, match="must have 128 values; got 64"):
        write(tmp_path / "out", sources["llama"], layers | {DOWN: layer})


def test_a_missing_bias_and_a_bias_given_twice_are_refused(tmp_path, sources):
    layers = ternary_all(sources["neox"])
    without = layers | {IN: dataclasses.replace(layers[IN], bias=None)}
    with pytest.raises(ValueError, match=rf"{IN} must have a bias of shape \(128,\) .* got no bia"):
        write(tmp_path / "out", sources["neox"], without)
    with pytest.raises(ValueError, match=rf"{IN}\.bias is both quantized and replaced"):
        write(tmp_path / "out", sources["neox"], layers, {f"{IN}.bias": torch.ones(128)})


def test_rows_that_fill_no_byte_are_refused_by_name(tmp_path):
    source = save_tiny_model(tmp_path / "model", tiny_config("llama", intermediate_size=102))
    layers = ternary_all(source)
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.gate_proj has 102 outputs"):
        write(tmp_path / "out", source, layers)


def test_formats_do_not_take_each_others_layers(tmp_path, sources, layers):
    with pytest.raises(InputError, match="of a ternary model must be bitnet; it is gptq"):
        write(tmp_path / "out", sources["llama"], layers, form="gptq")
    grid = quantize_all(sources["llama"], 2, 32, True)
    with pytest.raises(ValueError, match="bitnet holds ternary linears; these are quantized on a"):
        write_export(tmp_path / "o", sources["llama"], grid, {}, ExportConfig(format="bitnet"))


def test_conv1d_layers_are_refused(tmp_path):
    from transformers import GPT2Config

    config = GPT2Config(vocab_size=256, n_positions=64, n_embd=64, n_layer=1, n_head=2)
    source = save_tiny_model(tmp_path / "gpt2", config)
    codes = torch.zeros(192, 64, dtype=torch.int8)
    layers = {
        "transformer.h.0.attn.c_attn": TernaryLinear(
            codes, torch.tensor(2.0), None, torch.zeros(192)
        )
    }
    with pytest.raises(InputError, match=r"c_attn is a Conv1D .* readers of bitnet leave out"):
        write(tmp_path / "out", source, layers)
