"""Quantized models as anyone writes them, opened to be evaluated."""

import json

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from normtweak_core.errors import InputError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.loading import load_export
from normtweak_core.export.opening import load_quantized
from normtweak_core.export.writer import write_export
from normtweak_core.model.architecture import quantization_method
from tests.core.export.gguf_models import share_gains, wide, write
from tests.tiny_exports import quantize_all, read_json, save_tiny_model, ternary_all, tiny_config

IDS = torch.arange(20)[None]


def logits(model):
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with torch.inference_mode():
        return model(IDS, use_cache=False).logits


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("opened"), tiny_config("llama"))


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    """Folders of one model in both formats."""
    folder = tmp_path_factory.mktemp("exports")
    layers = quantize_all(source, 4, 32, False)
    for form in ("compressed-tensors", "gptq"):
        write_export(folder / form, source, layers, {}, ExportConfig(format=form))
    return folder


@pytest.mark.parametrize("form", ["compressed-tensors", "gptq"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_quantized_folder_computes_what_our_own_way_of_loading_gives(
    source, exported, form, dtype
):
    found = load_quantized(exported / form, dtype, "cpu")
    expected = load_export(exported / form, source, dtype, "cpu")
    assert torch.equal(logits(found), logits(expected))


@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (3, False), (8, True)])
def test_every_width_of_gptq_is_unpacked(source, tmp_path, bits, symmetric):
    layers = quantize_all(source, bits, 32, symmetric)
    write_export(tmp_path / "out", source, layers, {}, ExportConfig(format="gptq"))
    found = load_quantized(tmp_path / "out", torch.float32, "cpu")
    for name, layer in layers.items():
        weight = found.get_parameter(f"{name}.weight")
        assert torch.equal(weight, layer.dequantize().half().float()), name


def altered(folder, to, change, config=lambda quantization: None):
    """Copy a GPTQ folder with other tensors and another quantization_config."""
    to.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    tensors = {name: tensor.clone() for name, tensor in load_file(to / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    values = read_json(to / "config.json")
    config(values["quantization_config"])
    (to / "config.json").write_text(json.dumps(values))
    return to


def test_the_first_version_of_gptq_stores_one_less_than_each_zero(exported, tmp_path):
    """Ours, of asymmetric grids, is the second."""

    def lower_zeros(tensors):
        for name in [name for name in tensors if name.endswith("qzeros")]:
            packed = tensors[name].to(torch.int64) & 0xFFFFFFFF
            lowered = sum(((((packed >> s) & 15) - 1) % 16) << s for s in range(0, 32, 4))
            signed = torch.where(lowered >= 2**31, lowered - 2**32, lowered)
            tensors[name] = signed.to(torch.int32)

    changed = altered(
        exported / "gptq",
        tmp_path / "v1",
        lower_zeros,
        lambda quantization: quantization.update(checkpoint_format="gptq"),
    )
    expected = logits(load_quantized(exported / "gptq", torch.float32, "cpu"))
    assert torch.equal(logits(load_quantized(changed, torch.float32, "cpu")), expected)


def test_a_bitnet_folder_is_the_model_that_transformers_opens(tmp_path):
    source = save_tiny_model(tmp_path / "float", wide())
    write(tmp_path / "out", source, share_gains(ternary_all(source)))
    assert quantization_method(tmp_path / "out") == "bitnet"
    with torch.compiler.set_stance("force_eager"):
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
        with torch.inference_mode():
            expected = stock(IDS, use_cache=False).logits
        assert torch.equal(logits(load_quantized(tmp_path / "out", torch.float32, "cpu")), expected)


NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(path, model):
    """Write a Llama as llama.cpp's converter does, 8 bits a weight; the model becomes the same."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    eight = gguf.GGMLQuantizationType.Q8_0
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        inside = name.removeprefix("model.layers.").removesuffix(".weight")
        block, _, short = inside.partition(".")
        theirs = {
            "model.embed_tokens.weight": "token_embd",
            "model.norm.weight": "output_norm",
        }.get(name) or f"blk.{block}.{NAMES[short]}"
        if weight.ndim == 1:
            writer.add_tensor(f"{theirs}.weight", weight)
            continue
        codes = gguf.quants.quantize(weight, eight)
        parameter.data.copy_(torch.from_numpy(gguf.quants.dequantize(codes, eight)))
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        count = heads.get(theirs.rpartition(".")[2])
        if count:  # llama.cpp turns neighbouring rows, transformers the halves of a head
            codes = codes.reshape(count, 2, -1, codes.shape[1]).swapaxes(1, 2).reshape(codes.shape)
        writer.add_tensor(f"{theirs}.weight", codes, raw_dtype=eight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_the_model_it_was_made_from(source, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(source).eval().requires_grad_(False)
    before = logits(model)
    write_gguf(tmp_path / "model.gguf", model)
    found = logits(load_quantized(tmp_path / "model.gguf", torch.float32, "cpu"))
    torch.testing.assert_close(found, logits(model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, before, rtol=1e-5, atol=1e-5)


def test_what_nothing_here_opens_is_refused_by_its_name(source, tmp_path, exported):
    assert quantization_method(source) is None
    foreign = altered(
        exported / "gptq",
        tmp_path / "quip",
        lambda tensors: None,
        lambda quantization: quantization.update(quant_method="quip"),
    )
    with pytest.raises(InputError) as raised:
        load_quantized(foreign, torch.float32, "cpu")
    assert str(raised.value) == (
        "a quantized model must be compressed-tensors, bitnet, gptq, awq, auto-round or a GGUF "
        f"file; {foreign} is quantized with quip, which nothing here opens: convert it to one of "
        "them"
    )


def test_a_file_that_transformers_cannot_open_is_named(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"no model")
    with pytest.raises(InputError, match=f"transformers must be able to open {tmp_path}; it is no"):
        load_quantized(tmp_path / "model.gguf", torch.float32, "cpu")
