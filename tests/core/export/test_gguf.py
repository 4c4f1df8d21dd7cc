"""The GGUF file beside a ternary export: what it holds, read back, and why there is none."""

import dataclasses
import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitNetConfig, BitNetForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from normtweak_core import reference
from normtweak_core.errors import InputError, VerificationError
from normtweak_core.export import reader
from normtweak_core.export.checks import LinearShape
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.gguf_checks import check_gguf_exportable, gguf_obstacle
from normtweak_core.export.gguf_tokenizer import describe_tokenizer
from normtweak_core.export.payload import file_sha256, payload_sha256
from normtweak_core.export.verify import verify_export
from normtweak_core.export.writer import write_ternary_export
from tests.tiny_exports import read_json, save_tiny_model, ternary_all, tiny_config

EPS = 1e-6
FILE = "gguf/model-TQ2_0.gguf"
Q0 = "model.layers.0.self_attn.q_proj"
SHARED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
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


def wide(**changes):
    changes = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 2} | changes
    return tiny_config("llama", **changes)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama", wide())


def share_gains(layers):
    """Give the linears that read the same tensor the gain of the first of them."""
    shared = dict(layers)
    for name in layers:
        block, _, last = name.rpartition(".")
        for group in SHARED:
            if last in group:
                gain = layers[f"{block}.{group[0]}"].gain
                shared[name] = dataclasses.replace(layers[name], gain=gain)
    return shared


@pytest.fixture(scope="module")
def layers(llama):
    return share_gains(ternary_all(llama))


def norms(value=1.0):
    """Block norms with one gain, some of its signs turned."""
    gain = torch.full((256,), value)
    gain[::7] *= -1
    kinds = ("input_layernorm", "post_attention_layernorm")
    return {f"model.layers.{i}.{kind}.weight": gain for i in range(2) for kind in kinds}


def write(out, source, layers, replaced=None, form="bitnet", dtype="float32", eps=EPS):
    config = ExportConfig(format=form, dtype=dtype)
    replaced = norms() if replaced is None else replaced
    return write_ternary_export(out, source, layers, replaced, config, rms_norm_eps=eps)


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


def reason(out, source, layers, replaced=None, eps=EPS):
    """Why there is no file; asked for, the same is an error."""
    consumers = write(out, source, layers, replaced, eps=eps).consumers
    assert not (out / "gguf").exists()
    found = consumers["llama.cpp"]["reason"]
    assert f"There is no GGUF file for llama.cpp: {found}." in (out / "README.md").read_text()
    with pytest.raises(InputError, match=r"export\.format: gguf needs .* Use bitnet") as error:
        write(out, source, layers, replaced, form="gguf", eps=eps)
    assert found in str(error.value)
    return found


def test_gains_that_no_single_norm_holds_are_the_reason(tmp_path, llama, layers):
    bent = norms()
    bent["model.layers.1.input_layernorm.weight"] = torch.linspace(0.5, 2, 256)
    assert "that of model.layers.1.input_layernorm goes from 0.5 to 2" in reason(
        tmp_path / "a", llama, layers, bent
    )
    own = layers | {Q0: dataclasses.replace(layers[Q0], gain=layers[Q0].gain * 2)}
    assert "model.layers.0.self_attn.k_proj has others than model.layers.0.self_attn.q" in reason(
        tmp_path / "b", llama, own
    )
    assert "every ternary linear must read what a norm" in reason(
        tmp_path / "c", llama, ternary_all(llama, gains=False)
    )
    assert "the norms before the linears have 1e-05 where the model has 1e-06" in reason(
        tmp_path / "d", llama, layers, eps=1e-5
    )


def test_a_float_linear_and_a_scale_out_of_range_are_the_reason(tmp_path, llama, layers):
    partial = {name: layer for name, layer in layers.items() if name != Q0}
    assert f"every linear of the blocks must be ternary, and {Q0} is not" in reason(
        tmp_path / "a", llama, partial
    )
    small = layers | {Q0: dataclasses.replace(layers[Q0], weight_scale=torch.tensor(3e6))}
    assert f"that of {Q0} is 3.333e-07" in reason(tmp_path / "b", llama, small)


def test_a_head_stored_beside_the_embedding_is_the_reason(tmp_path):
    source = save_tiny_model(tmp_path / "model", wide())
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    layers = share_gains(ternary_all(source))
    assert "and it is stored beside it" in reason(tmp_path / "out", source, layers)


def test_another_family_and_another_width_are_the_reason(tmp_path):
    neox = save_tiny_model(tmp_path / "neox", tiny_config("neox"))
    assert "shaped like Llama, and the model is gpt_neox" in reason(
        tmp_path / "a", neox, ternary_all(neox), {}
    )
    narrow = save_tiny_model(tmp_path / "narrow", tiny_config("llama"))
    assert "multiple of 256, the block of TQ2_0, and that of model.layers.0" in reason(
        tmp_path / "b", narrow, share_gains(ternary_all(narrow)), {}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt_neox"}, "the model is gpt_neox"),
        ({"hidden_act": "gelu"}, "must be silu, and it is gelu"),
        ({"tie_word_embeddings": False}, "has a head of its own"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "the plain one, and it is llama3"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "the plain one, and it is linear"),
        ({"head_dim": 128}, "its 4 heads must be 64 wide, and they are 128"),
        ({"shape": 172}, r"that of model\.layers\.0\.down is 172"),
    ],
)
def test_what_a_config_rules_out_is_refused_before_any_work(change, message):
    change = dict(change)
    width = change.pop("shape", 512)
    config = {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4}
    config["tie_word_embeddings"] = True
    good = {"model.layers.0.down": LinearShape(256, 512)}
    check_gguf_exportable(config, good)
    assert gguf_obstacle(config, good) is None
    linears = {"model.layers.0.down": LinearShape(256, width)}
    with pytest.raises(InputError, match=rf"gguf needs a model of llama\.cpp's .*{message}\. Use"):
        check_gguf_exportable(config | change, linears)


REFERENCE = Path(reference.__file__).parent / "models" / "llama"


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
