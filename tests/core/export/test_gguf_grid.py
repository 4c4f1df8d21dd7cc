"""The GGUF file beside an export on a grid: the same weights, read by others, or a refusal."""

import shutil
from pathlib import Path

import gguf
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from normtweak_core import reference
from normtweak_core.errors import InputError, VerificationError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.formats.checks import LinearShape
from normtweak_core.export.gguf.grid_checks import (
    check_grid_exportable,
    held_in_words,
    predicted_bytes,
)
from normtweak_core.export.gguf.settings import rope_factors
from normtweak_core.export.sizes import size_check
from normtweak_core.export.verification import gguf_reader
from normtweak_core.export.verification.verify import _read_gguf, verify_export
from normtweak_core.export.writer import write_export
from normtweak_core.quantization.config import MixedBits, QuantizationConfig
from tests.tiny_exports import quantize_all, read_json, save_tiny_model

SIZES = {
    "vocab_size": 256,
    "max_position_embeddings": 64,
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama3": LlamaConfig(**SIZES, rope_parameters=LLAMA3, attention_bias=True, head_dim=32),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "phi3": Phi3Config(**SIZES, pad_token_id=0),
    "gpt_neox": GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}),
}


def write(out, source, bits=4, group_size=32, symmetric=True):
    layers = quantize_all(source, bits, group_size, symmetric)
    return write_export(out, source, layers, {}, ExportConfig(format="gguf")), layers


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama", FAMILIES["llama"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory, llama):
    return write(tmp_path_factory.mktemp("gguf") / "out", llama)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_transformers_finds_every_weight_in_the_file_alone(tmp_path, family):
    source = save_tiny_model(tmp_path / "model", FAMILIES[family])
    record, layers = write(tmp_path / "out", source)
    file = {"gguf_file": Path(record.consumers["llama.cpp"]["file"]).name}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/gguf", **file, dtype=torch.float32)
    wanted, found = state_of(source, layers), model.state_dict()
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []


def state_of(source, layers):
    """What a model computes with after its linears were quantized."""
    state = AutoModelForCausalLM.from_pretrained(source).half().float().state_dict()
    return state | {f"{name}.weight": layer.dequantize() for name, layer in layers.items()}


def taken_apart(tmp_path, family):
    """Tensors of a file that transformers does not open, and the state of its model."""
    source = save_tiny_model(tmp_path / "model", FAMILIES[family])
    record, layers = write(tmp_path / "out", source)
    file = gguf.GGUFReader(tmp_path / "out" / record.consumers["llama.cpp"]["file"])
    read = {t.name: torch.tensor(gguf.dequantize(t.data, t.tensor_type)) for t in file.tensors}
    return read, state_of(source, layers)


def test_rows_and_biases_of_queries_and_keys_are_put_in_pairs(tmp_path):
    found, state = taken_apart(tmp_path, "llama3")
    for short, heads in (("q", 4), ("k", 2)):
        own = state[f"model.layers.0.self_attn.{short}_proj.bias"]
        pairs = own.view(heads, 2, 16)
        assert torch.equal(found[f"blk.0.attn_{short}.bias"][2:4], pairs[0, :, 1])
        assert torch.equal(found[f"blk.0.attn_{short}.bias"][-2:], pairs[-1, :, -1])
        weight = state[f"model.layers.0.self_attn.{short}_proj.weight"]
        assert torch.equal(found[f"blk.0.attn_{short}.weight"][3], weight[17])
    assert found["rope_freqs.weight"].shape == (16,)


def test_qwen3_has_norms_of_queries_and_keys(tmp_path):
    found, state = taken_apart(tmp_path, "qwen3")
    for short, name in (("attn_q", "q_proj"), ("attn_k_norm", "k_norm")):
        wanted = state[f"model.layers.1.self_attn.{name}.weight"]
        assert torch.equal(found[f"blk.1.{short}.weight"], wanted)


def test_phi3_keeps_its_fused_linears(tmp_path):
    found, state = taken_apart(tmp_path, "phi3")
    names = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
    for short, name in names.items():
        wanted = state[f"model.layers.1.{name}.weight"]
        assert torch.equal(found[f"blk.1.{short}.weight"], wanted)


def test_neox_has_queries_of_all_heads_then_keys_then_values(tmp_path):
    found, state = taken_apart(tmp_path, "gpt_neox")
    for last in ("weight", "bias"):
        heads = state[f"gpt_neox.layers.1.attention.query_key_value.{last}"].view(4, 3, 16, -1)
        wanted = torch.cat([heads[:, part].flatten(0, 1) for part in range(3)])
        wanted = wanted.reshape(found[f"blk.1.attn_qkv.{last}"].shape)
        assert torch.equal(found[f"blk.1.attn_qkv.{last}"], wanted)


def test_frequencies_are_slowed_as_transformers_slows_them():
    config = FAMILIES["llama3"]
    plain = LlamaConfig(**SIZES, head_dim=32, rope_parameters=LLAMA3 | {"rope_type": "default"})
    theta = plain.rope_parameters["rope_theta"]
    frequencies = theta ** -(torch.arange(0, 32, 2).float() / 32)
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    assert torch.allclose(frequencies / rope_factors(config), wanted, rtol=1e-6)
    assert rope_factors(FAMILIES["llama"]) is None


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "kind"),
    [
        (2, 64, False, "Q4_0"),
        (3, None, True, "Q4_0"),
        (4, 32, False, "Q5_0"),
        (8, 32, True, "Q8_0"),
    ],
)
def test_each_width_goes_into_a_file_that_is_read_back_and_as_large_as_predicted(
    tmp_path, llama, bits, group_size, symmetric, kind
):
    if group_size == 64:  # 96 columns are no whole groups of 64
        wide = LlamaConfig(**SIZES | {"intermediate_size": 128}, tie_word_embeddings=True)
        llama = save_tiny_model(tmp_path / "model", wide)
    record, _ = write(tmp_path / "out", llama, bits, group_size, symmetric)
    entry = record.consumers["llama.cpp"]
    assert (entry["type"], entry["file"]) == (kind, f"gguf/model-{kind}.gguf")
    found = size_check(tmp_path / "out", llama)
    found.require_sound()
    shapes = {n: LinearShape(*found_shape(tmp_path / "out", n)) for n in found.quantized}
    config = QuantizationConfig(bits=bits, group_size=group_size, symmetric=symmetric)
    assert predicted_bytes(config, shapes).keys() == {kind}
    assert found.gguf.in_words().startswith(f"14 linears {kind}; ")
    assert held_in_words(config, shapes).endswith(
        f"{found.gguf.bits_per_weight:.4g} bits per weight"
    )
    assert entry["size_bytes"] == (tmp_path / "out" / entry["file"]).stat().st_size


def found_shape(folder, linear):
    return read_json(folder / "normtweak.json")["tensors"][f"{linear}.weight"]["shape"]


def test_every_tensor_of_the_file_is_compared(tmp_path, exported):
    record, _ = exported
    folder, entry = tmp_path / "out", record.consumers["llama.cpp"]
    shutil.copytree(record.folder, folder)
    path, problems = folder / entry["file"], []
    assert gguf_reader.check_tensors(path, entry["tensors"], problems) == 20
    assert problems == []
    more = {"blk.9.ffn_up.weight": {}} | entry["tensors"]
    del more["output_norm.weight"]
    gguf_reader.check_tensors(path, more, problems)
    assert [one["found"] for one in problems] == ["not ours", "no such tensor"]
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
    content = bytearray(path.read_bytes())
    content[tensor.data_offset + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationError, match=r"gguf of blk\.1\.ffn_up\.weight: expected"):
        verify_export(folder)
    path.write_bytes(content[:100])
    report = _read_gguf(folder, read_json(folder / "normtweak.json"), 100.0)
    assert [one["name"] for one in report["problems"]] == [entry["file"]]
    assert (report["tensors"], report["ours"]) == (0, [])
    assert report["versions"]["gguf"].startswith("0.")


def test_the_payload_is_that_of_compressed_tensors(tmp_path, llama, exported):
    record, layers = exported
    plain = write_export(tmp_path / "out", llama, layers, {}, ExportConfig())
    assert plain.payload_sha256 == record.payload_sha256
    card = (record.folder / "README.md").read_text()
    assert "llama.cpp opens `gguf/model-Q4_0.gguf` (Q4_0). It holds no tokenizer" in card


def test_the_tokenizer_of_the_reference_model_comes_along(tmp_path):
    source = Path(reference.__file__).parent / "models" / "llama"
    record, _ = write(tmp_path / "out", source, 3, 256)
    assert record.consumers["llama.cpp"]["type"] == "Q3_K"
    assert record.consumers["llama.cpp"]["tokenizer"] == "gpt2"


def test_scales_that_half_precision_does_not_hold_are_refused_by_name(tmp_path, llama):
    layers = quantize_all(llama, 4, 32, True, torch.float32)
    config = ExportConfig(format="gguf", dtype="float32")
    with pytest.raises(InputError, match=r"half precision, and one is .* of model\.layers\.0"):
        write_export(tmp_path / "out", llama, layers, {}, config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "dtype", "kind", "largest"),
    [
        (8, 32, False, "float16", "Q8_0", 1 / 127),
        (4, 16, True, "float16", "Q8_0", 1 / 127),
        (4, 32, True, "float32", "Q4_0", 2**-11),
    ],
)
def test_what_is_nearest_is_written_where_that_is_allowed_and_the_error_is_said(
    tmp_path, llama, bits, group_size, symmetric, dtype, kind, largest
):
    layers = quantize_all(llama, bits, group_size, symmetric, getattr(torch, dtype))
    config = ExportConfig(format="gguf", inexact="allow", dtype=dtype)
    record = write_export(tmp_path / "out", llama, layers, {}, config)
    entry = record.consumers["llama.cpp"]
    assert entry["type"] == kind
    file = gguf.GGUFReader(tmp_path / "out" / entry["file"])
    stored = {t.name: t for t in file.tensors}
    worst = 0.0
    for i in range(2):
        tensor = stored[f"blk.{i}.ffn_down.weight"]
        found = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        wanted = layers[f"model.layers.{i}.mlp.down_proj"].dequantize()
        worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max()))
    assert 0 < worst <= entry["error"]["largest"] <= largest
    assert 0 < entry["error"]["mean"]
    found = size_check(tmp_path / "out", llama)
    found.require_sound()
    told = f"{entry['error']['linear']} has the largest error, {entry['error']['largest']:.2g} of"
    assert told in found.gguf.in_words()
    card = (tmp_path / "out/README.md").read_text()
    assert f"There weights are not those of the export: {told}" in card
    problems = []
    gguf_reader.check_tensors(tmp_path / "out" / entry["file"], entry["tensors"], problems)
    assert problems == []


def test_an_allowed_error_that_is_none_changes_nothing(tmp_path, llama, exported):
    record, layers = exported
    config = ExportConfig(format="gguf", inexact="allow")
    again = write_export(tmp_path / "out", llama, layers, {}, config)
    assert again.consumers == record.consumers
    assert again.consumers["llama.cpp"]["error"] is None
    other = ExportConfig(format="gptq", inexact="allow")  # which does not read it
    assert other.written == {"format": "gptq", "dtype": "auto"}


GROUPS = {"model.layers.0.mlp.up_proj": LinearShape(128, 64)}
MIXED = MixedBits(average=3.0, choose_from=(2, 4))


@pytest.mark.parametrize(
    ("config", "quantization", "export", "linears", "message"),
    [
        ({"model_type": "opt"}, {}, {}, GROUPS, "model must be one of llama, .* and it is opt"),
        ({"hidden_act": "relu"}, {}, {}, GROUPS, "its activation must be silu, and it is relu"),
        ({"mlp_bias": True}, {}, {}, GROUPS, "no linear of an MLP may have a bias"),
        (
            {"rope_scaling": {"type": "yarn"}},
            {},
            {},
            GROUPS,
            "rotary embedding must be default or llama3, and it is yarn",
        ),
        (
            {"model_type": "mistral", "sliding_window": 16, "max_position_embeddings": 64},
            {},
            {},
            GROUPS,
            "each token must see all before it, and sliding_window is 16",
        ),
        ({}, {"bits": MIXED}, {}, GROUPS, "all linears must have one width"),
        ({}, {"symmetric": True, "activation_bits": 8}, {}, GROUPS, "activations must be float"),
        ({}, {}, {"dtype": "float32"}, GROUPS, "half precision, and export.dtype is float32"),
        ({}, {"bits": 8}, {}, GROUPS, "8-bit grids must be symmetric"),
        ({}, {"group_size": 16}, {}, GROUPS, "blocks of 32, and quantization.group_size is 16"),
        (
            {},
            {"group_size": None},
            {},
            {"down": LinearShape(64, 172)},
            r"rows must be whole blocks of 32, and none is \(172 wide\)",
        ),
    ],
)
def test_what_the_file_does_not_hold_is_refused_before_any_work(
    config, quantization, export, linears, message
):
    config = {"model_type": "llama"} | config
    asked = ExportConfig(format="gguf", **export)
    wanted = QuantizationConfig(**quantization)
    helps = message.startswith(("half", "8-bit", "blocks of 32"))
    with pytest.raises(
        InputError, match=rf"export\.format: gguf needs a model .*{message}"
    ) as told:
        check_grid_exportable(asked, wanted, config, linears)
    assert ("export.inexact: allow" in str(told.value)) == helps
    check_grid_exportable(ExportConfig(**export), wanted, config, linears)  # of another format
    near = ExportConfig(format="gguf", inexact="allow", **export)
    if helps:
        check_grid_exportable(near, wanted, config, linears)
    else:
        with pytest.raises(InputError, match=message):
            check_grid_exportable(near, wanted, config, linears)
    check_grid_exportable(
        ExportConfig(format="gguf"), QuantizationConfig(), {"model_type": "llama"}, GROUPS
    )
