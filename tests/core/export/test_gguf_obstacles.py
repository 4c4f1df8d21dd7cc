"""Why there is no GGUF file beside a ternary export, and what is refused before any work."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from normtweak_core.errors import InputError
from normtweak_core.export.formats.checks import LinearShape
from normtweak_core.export.gguf.ternary_checks import check_gguf_exportable, gguf_obstacle
from tests.core.export.gguf_models import EPS, Q0, norms, share_gains, wide, write
from tests.tiny_exports import save_tiny_model, ternary_all, tiny_config


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama", wide())


@pytest.fixture(scope="module")
def layers(llama):
    return share_gains(ternary_all(llama))


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
