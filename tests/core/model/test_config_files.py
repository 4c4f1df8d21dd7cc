"""config.json and its neighbours as people have them: marks, capitals, scalars for lists."""

import json

import pytest
import torch

from normtweak_core.errors import InputError
from normtweak_core.export.writer import _model_config
from normtweak_core.model.architecture import check_model_folder, model_context, read_config
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.skeleton import build_skeleton
from normtweak_core.model.tokenizer import load_tokenizer
from tests.flows.tiny_model import CONTEXT, write_model


def rewrite(model, **changes):
    config = json.loads((model / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value != "absent"}
    (model / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("lacks_its_context", [False, True])
def test_a_config_with_a_byte_order_mark_is_read_wherever_it_is_read(tmp_path, lacks_its_context):
    model = write_model(tmp_path / "model")
    if lacks_its_context:
        rewrite(model, max_position_embeddings="absent")
    plain = load_causal_lm(model, torch.float32, "cpu")
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text, encoding="utf-8-sig")
    check_model_folder(model)
    assert model_context(model) == (2048 if lacks_its_context else CONTEXT)
    assert build_skeleton(model, torch.float32).config.hidden_size == 64
    marked = load_causal_lm(model, torch.float32, "cpu")
    ids = torch.arange(8).unsqueeze(0)
    assert torch.equal(marked(ids).logits, plain(ids).logits)
    assert load_tokenizer(model)("w5 w7")["input_ids"] == [5, 7]
    assert _model_config(model, torch.float32, {})["hidden_size"] == 64


def test_an_architecture_given_as_a_text_is_one(tmp_path):
    model = write_model(tmp_path / "model", architectures="LlamaForCausalLM")
    check_model_folder(model)
    assert read_config(model)["architectures"] == ["LlamaForCausalLM"]
    assert load_causal_lm(model, torch.float32, "cpu").config.model_type == "llama"
    assert _model_config(model, torch.float32, {})["architectures"] == ["LlamaForCausalLM"]
    rewrite(model, architectures="BertModel")
    with pytest.raises(
        InputError, match=r"\(\.\.\.ForCausalLM\), .*/model is BertModel\. Choose a"
    ):
        check_model_folder(model)


def test_an_end_of_text_given_as_a_list_is_accepted(tmp_path):
    model = write_model(tmp_path / "model", eos_token_id=[1, 2])
    assert load_causal_lm(model, torch.float32, "cpu").generation_config.eos_token_id == [1, 2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": [5]}, "architectures must be a list of names; found [5]"),
        ({"architectures": 5}, "architectures must be a list of names; found 5"),
        ({"model_type": 5}, "model_type must be text; found 5"),
        ({"model_type": ["llama"]}, "model_type must be text; found ['llama']"),
        ({"text_config": "llama"}, "text_config must be an object; found 'llama'"),
        ({"quantization_config": "gptq"}, "quantization_config must be an object; found 'gptq'"),
    ],
)
def test_a_key_of_another_kind_is_named(tmp_path, changes, said):
    model = rewrite(write_model(tmp_path / "model"), **changes)
    with pytest.raises(InputError) as refused:
        check_model_folder(model)
    assert str(refused.value) == f"{model}/config.json: {said}: fetch or save the model again"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1 must be JSON; it is not valid JSON: Expecting property name enclosed in do"),
        ("[" * 100_000, "line 1 must be JSON; it is nested too deeply to be read: fetch or save"),
        ('{"a":\n' + "9" * 5000 + "}", "line 2 must be JSON; it has a number of more than 4300 "),
        ("[]", "must be a JSON object; it is a list: fetch or save the model again"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_settings_that_are_no_json_are_refused_with_file_and_line(tmp_path, text, said, name):
    model = write_model(tmp_path / "model")
    (model / name).write_text(text)
    if name != "config.json":
        (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    with pytest.raises(InputError) as refused:
        check_model_folder(model)
    assert str(refused.value).startswith(f"{model / name} {said}")
