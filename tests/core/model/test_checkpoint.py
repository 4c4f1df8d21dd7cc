import json
import re

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from normtweak_core.errors import InputError
from normtweak_core.model.architecture import check_model_folder
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.streaming import StreamedModel
from tests.core.model.families import FAMILIES, ODD_FAMILIES, build, save

UP = "model.layers.1.mlp.up_proj.weight"


def rewrite(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def quantized_without_a_config(folder, dtype):
    def change(weights):
        scale = 50 if dtype.is_floating_point else 20
        weights[UP] = (weights[UP] * scale).to(dtype)
        weights[f"{UP}_scale_inv"] = torch.full((1, 1), 1 / scale)

    return rewrite(save("llama", folder), change)


@pytest.mark.parametrize(
    ("dtype", "told"),
    [
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
    ],
)
def test_weights_of_a_quantized_model_are_no_floats_whatever_its_config_says(dtype, told, tmp_path):
    folder = quantized_without_a_config(tmp_path, dtype)
    message = re.escape(
        f"every weight must be stored as F16, BF16, F32, F64; 1 of {folder} is not, {UP} ({told}) "
        "first: the model is quantized. Give the float model it was made from."
    )
    for check in (
        check_model_folder,
        lambda folder: StreamedModel(folder, torch.float32, "cpu"),
        lambda folder: load_causal_lm(folder, torch.float32, "cpu"),
    ):
        with pytest.raises(InputError, match=message):
            check(folder)


def test_a_bias_in_integers_is_no_float_either(tmp_path):
    def change(weights):
        weights["model.norm.weight"] = torch.ones(32, dtype=torch.int32)

    folder = rewrite(save("llama", tmp_path), change)
    with pytest.raises(InputError, match=r"model\.norm\.weight \(I32\) first: the model is quant"):
        StreamedModel(folder, torch.float32, "cpu")


@pytest.mark.parametrize(
    "name", [f"{UP}_scale_inv", "model.layers.0.mlp.up_proj.qzeros", "model.layers.0.extra.bias"]
)
def test_a_tensor_that_the_model_does_not_use_is_named(name, tmp_path):
    folder = rewrite(save("llama", tmp_path), lambda w: w.update({name: torch.ones(1, 1)}))
    message = re.escape(
        f"every stored tensor must belong to the model; 1 of {folder} is not used by "
        f"LlamaForCausalLM, {name} (F32, [1, 1]) first: a scale of a quantized model, or a part of "
        "another one. Give the float model, or save it again with save_pretrained."
    )
    for load in (load_causal_lm, StreamedModel):
        with pytest.raises(InputError, match=message):
            load(folder, torch.float32, "cpu")


MASK = torch.ones(1, 1, 64, 64, dtype=torch.bool)
OF_OLD_VERSIONS = {
    "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    "gpt2": {"transformer.h.0.attn.bias": MASK, "transformer.h.0.attn.masked_bias": torch.ones(())},
    "gpt_neox": {
        "gpt_neox.layers.0.attention.bias": MASK,
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
    },
    "qwen3_next": {"mtp.layers.0.mlp.up_proj.weight": torch.ones(4, 4)},
}


@pytest.mark.parametrize("family", OF_OLD_VERSIONS)
def test_what_transformers_ignores_is_no_obstacle(family, tmp_path):
    folder = rewrite(save(family, tmp_path), lambda w: w.update(OF_OLD_VERSIONS[family]))
    check_model_folder(folder)
    StreamedModel(folder, torch.float32, "cpu")
    load_causal_lm(folder, torch.float32, "cpu")


@pytest.mark.parametrize("family", [*FAMILIES, *ODD_FAMILIES])
def test_what_save_pretrained_writes_is_accepted(family, tmp_path):
    check_model_folder(save(family, tmp_path, torch.bfloat16))
    StreamedModel(tmp_path, torch.bfloat16, "cpu")


def test_the_head_of_a_tied_model_may_be_stored(tmp_path):
    embedding = build("llama").model.embed_tokens.weight.data.clone()
    rewrite(save("llama", tmp_path), lambda w: w.update({"lm_head.weight": embedding}))
    assert isinstance(load_causal_lm(tmp_path, torch.float32, "cpu"), hf.LlamaForCausalLM)


def sharded(folder, change):
    save("llama", folder, max_shard_size="20KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    return index["weight_map"][UP]


def test_an_index_that_lists_a_tensor_no_shard_holds_is_refused(tmp_path):
    file = sharded(tmp_path, lambda listed: listed.update({"lm_head.weight": listed[UP]}))
    message = f"it says that lm_head.weight is in {file}, which does not hold it"
    with pytest.raises(InputError, match=re.escape(message)):
        check_model_folder(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    file = sharded(tmp_path, lambda listed: None)
    other = next(path for path in tmp_path.glob("*.safetensors") if path.name != file)
    both = load_file(other) | {UP: load_file(tmp_path / file)[UP]}
    save_file(both, other, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"each tensor must be stored once; {re.escape(UP)} is"):
        check_model_folder(tmp_path)
