"""The GGUF file beside a ternary export: what it holds, read back, and why there is none."""

import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitNetConfig, BitNetForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from normtweak_core import reference
from normtweak_core.errors import VerificationError
from normtweak_core.export.gguf.tokenizer import describe_tokenizer
from normtweak_core.export.payload import file_sha256, payload_sha256
from normtweak_core.export.verification import reader
from normtweak_core.export.verification.verify import verify_export
from tests.core.export.gguf_models import EPS, FILE, Q0, norms, share_gains, wide, write
from tests.tiny_exports import read_json, save_tiny_model, ternary_all

REFERENCE = Path(reference.__file__).parent / "models" / "llama"
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
    "ffn_norm": "post_attention_layernorm",
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama", wide())


@pytest.fixture(scope="module")
def layers(llama):
    return share_gains(ternary_all(llama))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, llama, layers):
    return write(tmp_path_factory.mktemp("gguf") / "out", llama, layers).folder


def read(folder):
    """Tensors of the file by name, dequantized by the package that stands beside llama.cpp."""
    file = gguf.GGUFReader(folder / FILE)
    return {
        tensor.name: torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)).reshape(
            [int(n) for n in reversed(tensor.shape)]
        )
        for tensor in file.tensors
    }


def field(folder, key):
    return gguf.GGUFReader(folder / FILE).fields[key].contents()


def test_the_file_dequantizes_to_exactly_the_ternary_weights(exported, layers):
    tensors = read(exported)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(exported / FILE).tensors}
    for i in range(2):
        for short, name in NAMES.items():
            if "norm" in short:
                continue
            layer = layers[f"model.layers.{i}.{name}"]
            scale = (1 / layer.weight_scale).half().float()
            assert torch.equal(tensors[f"blk.{i}.{short}.weight"], layer.codes.float() * scale)
            assert kinds[f"blk.{i}.{short}.weight"] == "TQ2_0"
    assert len(tensors) == 2 + 2 * len(NAMES)


def test_the_gains_of_norms_in_a_row_are_one(exported, layers):
    tensors = read(exported)
    sign = norms()["model.layers.0.input_layernorm.weight"]
    q, down = layers[Q0].gain, layers["model.layers.1.mlp.down_proj"].gain
    assert torch.equal(tensors["blk.0.attn_norm.weight"], q * sign)
    assert torch.equal(tensors["blk.1.ffn_sub_norm.weight"], down)


def test_a_block_norm_of_another_size_makes_no_difference(tmp_path, exported, llama, layers):
    folder = write(tmp_path / "out", llama, layers, norms(0.25)).folder
    assert file_sha256(folder / FILE) == file_sha256(exported / FILE)


def test_an_independent_bitnet_model_computes_the_same(exported, llama, layers):
    # Both without rounding activations, so that what is compared is where each tensor went.
    config = read_json(llama / "config.json")
    shared = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    shared += ("num_hidden_layers", "vocab_size", "rms_norm_eps", "max_position_embeddings")
    options = {key: config[key] for key in shared} | {"hidden_act": "silu"}
    rope = {"rope_type": "default", "rope_theta": field(exported, "bitnet.rope.freq_base")}
    bitnet = BitNetForCausalLM(
        BitNetConfig(**options, rope_parameters=rope, tie_word_embeddings=True)
    )
    state = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
    for i in range(2):
        state |= {f"model.layers.{i}.{n}.weight": f"blk.{i}.{s}" for s, n in NAMES.items()}
    tensors = read(exported)
    state = {name: tensors[f"{short}.weight"] for name, short in state.items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    bitnet.load_state_dict(state)

    ours = AutoModelForCausalLM.from_pretrained(llama)
    for name, layer in layers.items():
        norm, linear = LlamaRMSNorm(len(layer.gain), eps=EPS), ours.get_submodule(name)
        norm.weight.data = layer.gain
        linear.weight.data = layer.codes.float() * (1 / layer.weight_scale).half().float()
        ours.set_submodule(name, nn.Sequential(norm, linear))
    for name, gain in norms().items():
        ours.get_parameter(name).data = gain
    ids = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        expected, found = ours(ids).logits, bitnet.eval()(ids).logits
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_settings_are_the_models(exported):
    expected = {
        "general.architecture": "bitnet",
        "general.file_type": 37,
        "bitnet.block_count": 2,
        "bitnet.embedding_length": 256,
        "bitnet.feed_forward_length": 512,
        "bitnet.attention.head_count": 4,
        "bitnet.attention.head_count_kv": 2,
        "bitnet.rope.dimension_count": 64,
        "bitnet.context_length": 64,
        "bitnet.vocab_size": 256,
        "tokenizer.ggml.model": "no_vocab",  # the tiny tokenizer has no merges
    }
    assert {key: field(exported, key) for key in expected} == expected
    assert field(exported, "bitnet.attention.layer_norm_rms_epsilon") == pytest.approx(EPS)


def test_the_manifest_says_who_opens_what_and_the_payload_is_the_same(
    tmp_path, exported, llama, layers
):
    manifest = read_json(exported / "normtweak.json")
    assert manifest["consumers"] == {
        "transformers": {"file": ".", "class": "AutoModelForCausalLM", "needs": ["accelerate"]},
        "llama.cpp": {
            "file": FILE,
            "type": "TQ2_0",
            "architecture": "bitnet",
            "sha256": file_sha256(exported / FILE),
            "size_bytes": (exported / FILE).stat().st_size,
            "tokenizer": None,
            "tensors": manifest["consumers"]["llama.cpp"]["tensors"],
            "error": None,
        },
    }
    assert FILE not in manifest["files"]
    assert payload_sha256(exported) == manifest["payload_sha256"]
    assert (
        "llama.cpp opens `gguf/model-TQ2_0.gguf` (TQ2_0). It"
        in (exported / "README.md").read_text()
    )
    again = write(tmp_path / "out", llama, layers, form="gguf")
    assert again.consumers == manifest["consumers"]
    assert again.payload_sha256 == manifest["payload_sha256"]


def test_transformers_does_not_open_the_file_by_itself(exported):
    # When it does, the manifest can say so.
    with pytest.raises(ValueError, match="architecture bitnet is not supported yet"):
        AutoModelForCausalLM.from_pretrained(exported / "gguf", gguf_file="model-TQ2_0.gguf")


@pytest.mark.parametrize(("dtype", "kind"), [("float16", "F16"), ("bfloat16", "F32")])
def test_the_embedding_keeps_its_values(tmp_path, llama, dtype, kind):
    layers = share_gains(ternary_all(llama, getattr(torch, dtype)))
    folder = write(tmp_path / "out", llama, layers, dtype=dtype).folder
    first = gguf.GGUFReader(folder / FILE).tensors[0]
    assert (first.name, first.tensor_type.name) == ("token_embd.weight", kind)
    model = AutoModelForCausalLM.from_pretrained(llama)
    embedding = model.get_input_embeddings().weight.to(getattr(torch, dtype)).float()
    assert torch.equal(read(folder)["token_embd.weight"], embedding)


def test_an_altered_file_is_found(tmp_path, llama, layers):
    folder = write(tmp_path / "out", llama, layers).folder
    with (folder / FILE).open("r+b") as file:
        file.seek(-1000, 2)
        file.write(b"x")
    with torch.compiler.set_stance("force_eager"):
        problems = reader.examine(folder)["problems"]
    assert [(problem["what"], problem["name"]) for problem in problems] == [("file", FILE)]
    with pytest.raises(VerificationError, match=rf"file of {FILE}: expected"):
        verify_export(folder)


def test_a_byte_level_tokenizer_comes_along(tmp_path, layers):
    source = save_tiny_model(tmp_path / "model", wide(vocab_size=520), tokenizer=False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(REFERENCE / name, source)
    folder = write(tmp_path / "out", source, share_gains(ternary_all(source))).folder
    stored = read_json(REFERENCE / "tokenizer.json")
    tokens = field(folder, "tokenizer.ggml.tokens")
    types = field(folder, "tokenizer.ggml.token_type")
    assert {tokens[i]: i for i in range(512)} == stored["model"]["vocab"]
    assert tokens[512:] == [f"[PAD{i}]" for i in range(512, 520)]
    assert [types[0], types[1], types[519]] == [3, 1, 5]  # control, normal, unused
    assert field(folder, "tokenizer.ggml.merges") == [
        " ".join(pair) for pair in stored["model"]["merges"]
    ]
    assert field(folder, "tokenizer.ggml.model") == "gpt2"
    assert field(folder, "tokenizer.ggml.pre") == "gpt-2"
    assert field(folder, "tokenizer.ggml.bos_token_id") == 0
    assert field(folder, "tokenizer.ggml.eos_token_id") == 0
    assert field(folder, "tokenizer.ggml.add_bos_token") is True
    assert "It holds no tokenizer" not in (folder / "README.md").read_text()
    entry = read_json(folder / "normtweak.json")["consumers"]["llama.cpp"]
    assert entry["tokenizer"] == "gpt2"


@pytest.mark.parametrize("layout", ["files", "settings", "one"])
def test_chat_templates_come_along_whatever_their_layout(tmp_path, layers, layout):
    source = save_tiny_model(tmp_path / "model", wide())
    templates = {"default": "{{ messages }}", "tool-use": "{{ tools }}", "tool_use": "é{{ bos }}"}
    if layout == "files":
        (source / "additional_chat_templates").mkdir()
        for name, text in templates.items():
            file = "chat_template" if name == "default" else f"additional_chat_templates/{name}"
            (source / f"{file}.jinja").write_text(text)
    else:
        listed = [{"name": name, "template": text} for name, text in templates.items()]
        settings = read_json(source / "tokenizer_config.json")
        settings["chat_template"] = listed if layout == "settings" else templates["default"]
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
    folder = write(tmp_path / "out", source, share_gains(ternary_all(source))).folder
    assert field(folder, "tokenizer.chat_template") == "{{ messages }}"
    names = {key for key in gguf.GGUFReader(folder / FILE).fields if "chat_template" in key}
    if layout == "one":
        assert names == {"tokenizer.chat_template"}
        return
    assert len(names) == 4
    assert field(folder, "tokenizer.chat_templates") == ["tool_use", "tool_use_"]
    assert field(folder, "tokenizer.chat_template.tool_use") == "{{ tools }}"
    assert field(folder, "tokenizer.chat_template.tool_use_") == "é{{ bos }}"


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"pre_tokenizer": None},
        {"model": {"type": "Unigram", "vocab": []}},
        {"added_tokens": [{"id": 520, "content": "<x>", "special": True}]},
    ],
)
def test_a_tokenizer_that_would_run_almost_right_is_left_out(tmp_path, change):
    stored = read_json(REFERENCE / "tokenizer.json")
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(stored))
    assert describe_tokenizer(tmp_path, 520) is not None
    path.write_text(json.dumps(stored | change))
    assert describe_tokenizer(tmp_path, 520) is None


def test_a_folder_without_tokenizer_has_none(tmp_path):
    assert describe_tokenizer(tmp_path, 520) is None
