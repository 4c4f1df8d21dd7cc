"""The export folder: its bytes, its files, and that it appears whole or not at all."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.manifest import tensor_sha256
from normtweak_core.export.payload import payload_files, payload_sha256
from normtweak_core.export.writer import write_export
from tests.tiny_exports import quantize_all, read_json, save_tiny_model, tiny_config

NORM = "model.layers.0.input_layernorm.weight"
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama", tiny_config("llama"))


@pytest.fixture(scope="module")
def layers(llama):
    return quantize_all(llama, 3, 32, False)


def write(out, source, layers, replaced=None, **options):
    config = ExportConfig(
        format=options.pop("format", "auto"), dtype=options.pop("dtype_name", "float16")
    )
    return write_export(out, source, layers, replaced or {}, config, **options)


def stored_names(folder):
    names = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


class Lazy(Mapping):
    """Layers that note when they are asked for."""

    def __init__(self, layers):
        self.layers, self.asked = layers, []

    def __getitem__(self, name):
        self.asked.append(name)
        return self.layers[name]

    def __contains__(self, name):
        return name in self.layers

    def __iter__(self):
        return iter(self.layers)

    def __len__(self):
        return len(self.layers)


@pytest.mark.parametrize("form", ["compressed-tensors", "gptq"])
def test_the_same_model_gives_the_same_bytes_whatever_the_folders(tmp_path, llama, layers, form):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in llama.iterdir():
        (elsewhere / path.name).write_bytes(path.read_bytes())
    first = write(tmp_path / "a" / "one", llama, layers, format=form)
    second = write(
        tmp_path / "b" / "two", elsewhere, layers, format=form, details={"run_id": "another"}
    )
    assert first.payload_sha256 == second.payload_sha256
    assert str(tmp_path) not in "".join(
        path.read_text() for path in payload_files(second.folder) if path.suffix == ".json"
    )


def test_the_payload_hash_covers_exactly_the_payload(tmp_path, llama, layers):
    record = write(tmp_path / "out", llama, layers)
    names = ["config.json", "generation_config.json", "model.safetensors"]
    names += ["tokenizer.json", "tokenizer_config.json"]
    lines = "".join(
        f"{hashlib.sha256((record.folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in names
    )
    assert record.payload_sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert record.size_bytes == sum((record.folder / name).stat().st_size for name in names)
    (record.folder / "drift.png").write_bytes(b"plot")
    (record.folder / "README.md").write_text("changed")
    assert payload_sha256(record.folder) == record.payload_sha256
    (record.folder / "added_tokens.json").write_text("{}")
    assert payload_sha256(record.folder) != record.payload_sha256


def test_what_is_copied_of_the_source_is_in_the_payload(tmp_path, llama, layers):
    source = tmp_path / "source"
    shutil.copytree(llama, source)
    (source / "qwen.tiktoken").write_bytes(b"IQ== 0\n")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (source / "generation_config.json").write_text('{"eos_token_id": 3, "_name_or_path": "x"}')
    config = read_json(source / "config.json") | {"transformers_version": "4.40.0"}
    (source / "config.json").write_text(json.dumps(config))
    folder = write(tmp_path / "out", source, layers).folder
    assert (folder / "qwen.tiktoken").read_bytes() == b"IQ== 0\n"
    assert read_json(folder / "generation_config.json") == {"eos_token_id": 3}
    # Kept: AutoTokenizer tells by it whether a Mistral tokenizer is to be mended.
    assert read_json(folder / "config.json")["transformers_version"] == "4.40.0"
    names = {path.relative_to(folder).as_posix() for path in payload_files(folder)}
    template = "additional_chat_templates/tool_use.jinja"
    assert names >= {"qwen.tiktoken", "generation_config.json", "config.json", template}
    assert (folder / template).read_text() == "{{ tools }}"
    assert template in read_json(folder / "normtweak.json")["files"]


def test_no_code_of_the_source_and_no_way_to_it_is_exported(tmp_path, llama, layers):
    # A folder of a model that transformers has by now: its authors' files lie there all the same.
    source = tmp_path / "source"
    shutil.copytree(llama, source)
    (source / "modeling_llama.py").write_text("raise SystemExit")
    for name in ("config.json", "generation_config.json"):
        settings = read_json(source / name) | {"auto_map": {"AutoModel": "modeling_llama.Model"}}
        (source / name).write_text(json.dumps(settings))
    record, known = (
        write(tmp_path / "out", source, layers),
        write(tmp_path / "known", llama, layers),
    )
    assert list(record.folder.rglob("*.py")) == []
    for path in payload_files(record.folder):
        assert b"auto_map" not in path.read_bytes(), path.name
    assert record.payload_sha256 == known.payload_sha256


def test_shards_hold_the_same_tensors_as_a_single_file(tmp_path, llama, layers):
    whole = write(tmp_path / "whole", llama, layers).folder
    parts = write(tmp_path / "parts", llama, layers, max_shard_bytes=20_000).folder
    files = sorted(path.name for path in parts.glob("model-*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert not (parts / "model.safetensors").exists()
    index = read_json(parts / "model.safetensors.index.json")
    single = load_file(whole / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in single.values())
    assert set(index["weight_map"].values()) == set(files)
    for name, tensor in single.items():
        assert torch.equal(load_file(parts / index["weight_map"][name])[name], tensor), name
    assert [
        path.name for path in parts.iterdir() if path.stat().st_size > 40_000 and path.name in files
    ] == []


def test_each_layer_is_asked_for_once_and_in_the_order_of_the_blocks(tmp_path, llama, layers):
    lazy = Lazy(dict(reversed(layers.items())))
    write(tmp_path / "out", llama, lazy)
    # The type checks of the test run look at a mapping's first entry; so it does not count here.
    assert [name for name in lazy.asked if name != next(iter(lazy))] == list(layers)[:-1]


def test_a_tied_head_is_omitted_and_everything_else_is_copied(tmp_path, llama, layers):
    folder = write(tmp_path / "out", llama, layers).folder
    source = load_file(llama / "model.safetensors")
    stored = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in stored
    assert stored["model.embed_tokens.weight"].dtype == torch.float16
    for name, tensor in source.items():
        if name.removesuffix(".weight") not in layers:
            assert torch.equal(stored[name], tensor.half()), name


def test_a_head_stored_beside_the_embedding_it_equals_is_omitted_too(tmp_path, llama, layers):
    model = tmp_path / "model"
    model.mkdir()
    for path in llama.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    tensors = load_file(llama / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    record = write(tmp_path / "out", model, layers)
    assert record.payload_sha256 == write(tmp_path / "plain", llama, layers).payload_sha256


def test_replaced_tensors_take_the_place_of_the_sources(tmp_path, llama, layers, seeded):
    gain = torch.rand(64, generator=seeded()) + 0.5
    folder = write(tmp_path / "out", llama, layers, {NORM: gain}).folder
    assert torch.equal(load_file(folder / "model.safetensors")[NORM], gain.half())
    entry = read_json(folder / "normtweak.json")["tensors"][NORM]
    assert entry == {
        "sha256": tensor_sha256(gain.half()),
        "shape": [64],
        "dtype": "float16",
        "quantized": False,
    }


def test_the_config_is_the_sources_and_says_how_it_is_quantized(tmp_path, llama, layers):
    folder = write(tmp_path / "out", llama, layers).folder
    source, config = read_json(llama / "config.json"), read_json(folder / "config.json")
    quantization = config.pop("quantization_config")
    assert quantization["dequantize"] is True
    assert config == source | {"dtype": "float16"}
    text = (folder / "config.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_metadata_of_the_weight_file_is_one_key(tmp_path, llama, layers):
    folder = write(tmp_path / "out", llama, layers).folder
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_manifest_hashes_the_product_rounded_once(tmp_path, llama, layers):
    record = write(tmp_path / "out", llama, layers, details={"recipe": {"name": "x"}})
    manifest = read_json(record.folder / "normtweak.json")
    assert manifest["recipe"] == {"name": "x"}
    assert manifest["payload_sha256"] == record.payload_sha256
    weight = layers[DOWN].dequantize().half()
    assert manifest["tensors"][f"{DOWN}.weight"] == {
        "sha256": hashlib.sha256(weight.numpy().tobytes()).hexdigest(),
        "shape": [64, 128],
        "dtype": "float16",
        "quantized": True,
        "scales_sha256": tensor_sha256(layers[DOWN].scales.half()),
    }
    assert sum(entry["quantized"] for entry in manifest["tensors"].values()) == len(layers)


def test_details_may_not_overwrite_the_exports_own_entries(tmp_path, llama, layers):
    with pytest.raises(ValueError, match="details must not hold payload_sha256"):
        write(tmp_path / "out", llama, layers, details={"payload_sha256": "x"})
    assert not (tmp_path / "out").exists()


def test_bits_per_weight_counts_what_is_stored(tmp_path, llama, layers):
    record = write(tmp_path / "out", llama, layers)
    stored = load_file(record.folder / "model.safetensors")
    bits = sum(8 * t.nbytes for name, t in stored.items() if ".weight_" in name)
    assert record.bits_per_weight == bits / sum(layer.codes.numel() for layer in layers.values())
    assert record.bits_per_weight > 3 + 16 / 32 + 3 / 32


def test_the_card_says_how_to_load_and_which_release_reads_3_bits(tmp_path, llama, layers):
    text = (write(tmp_path / "out", llama, layers).folder / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained" in text
    assert "compressed-tensors 0.20 or newer" in text
    assert "3-bit linear layers (asymmetric, groups of 32)" in text


def test_writing_does_not_touch_the_global_generator(tmp_path, llama, layers):
    state = torch.get_rng_state()
    write(tmp_path / "out", llama, layers)
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_counts_to_the_end(tmp_path, llama, layers):
    seen = []
    write(tmp_path / "out", llama, layers, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == len(seen)


def test_a_failed_export_leaves_nothing_behind(tmp_path, llama, layers):
    broken = dict(layers)
    del broken[DOWN]
    broken[DOWN] = dataclasses.replace(layers[DOWN], scales=layers[DOWN].scales * 1.0001)
    with pytest.raises(ValueError, match=rf"numbers that float16 holds; those of {DOWN}"):
        write(tmp_path / "out", llama, broken)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced_and_abandoned_folders_are_removed(tmp_path, llama, layers):
    first = write(tmp_path / "out", llama, layers)
    (tmp_path / ".out.killed.partial").mkdir()
    (tmp_path / ".out.killed.partial" / "model.safetensors").write_bytes(b"half")
    second = write(tmp_path / "out", llama, layers, {NORM: torch.ones(64)})
    assert second.payload_sha256 == payload_sha256(tmp_path / "out") != first.payload_sha256
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_not_an_export_is_left_alone(tmp_path, llama, layers):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("words")
    with pytest.raises(InputError, match="must be new, empty or an earlier export"):
        write(tmp_path / "out", llama, layers)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "words"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"codes": torch.zeros(64, 96, dtype=torch.uint8)}, ValueError, r"\(64, 128\) codes"),
        ({"bits": 4}, ValueError, "all layers must share"),
        ({"scales": torch.full((64, 4), torch.nan)}, NonFiniteError, "finite and not zero"),
        ({"scales": torch.zeros(64, 4)}, NonFiniteError, "finite and not zero"),
    ],
)
def test_a_layer_that_does_not_belong_is_refused(tmp_path, llama, layers, change, error, message):
    broken = layers | {DOWN: dataclasses.replace(layers[DOWN], **change)}
    with pytest.raises(error, match=message):
        write(tmp_path / "out", llama, broken)


def test_a_symmetric_layer_must_have_its_zero_in_the_middle(tmp_path, llama):
    layers = quantize_all(llama, 4, None, True)
    layers[DOWN] = dataclasses.replace(layers[DOWN], zeros=layers[DOWN].zeros + 1)
    with pytest.raises(ValueError, match=rf"zeros must be 2\*\*\(bits-1\); {DOWN} differs"):
        write(tmp_path / "out", llama, layers)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.9.input_layernorm.weight", "not a stored parameter"),
        ("lm_head.weight", "not a stored parameter"),
        (f"{DOWN}.weight", "both quantized and replaced"),
    ],
)
def test_a_replaced_tensor_that_does_not_belong_is_refused(tmp_path, llama, layers, name, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "out", llama, layers, {name: torch.ones(64)})


def test_values_beyond_the_float_type_are_refused(tmp_path, llama, layers):
    beyond = f"float16 does not: {NORM} reaches 70000, beyond 65504: set it to bfloat16 or float32"
    with pytest.raises(InputError, match=beyond):
        write(tmp_path / "out", llama, layers, {NORM: torch.full((64,), 7e4)})
    with pytest.raises(NonFiniteError, match=f"every weight must be finite; {NORM}"):
        write(tmp_path / "out", llama, layers, {NORM: torch.full((64,), torch.nan)})
