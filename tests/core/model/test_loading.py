import json

import pytest
import torch
from families import build, save, tokens
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from normtweak_core.errors import InputError
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.streaming import StreamedModel


def test_a_loaded_model_gives_the_logits_it_was_saved_with(tmp_path):
    model = load_causal_lm(save("gemma2", tmp_path), torch.float32, "cpu")
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, build("gemma2")(tokens()).logits)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_loading_draws_no_random_numbers_and_no_bar(tmp_path, capfd):
    save("llama", tmp_path)
    transformers_logging.enable_progress_bar()
    capfd.readouterr()
    before = torch.get_rng_state()
    load_causal_lm(tmp_path, torch.float32, "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert "".join(capfd.readouterr()) == ""
    assert transformers_logging.is_progress_bar_enabled()


def test_a_missing_weight_is_an_error_and_not_a_random_number(tmp_path):
    path = save("llama", tmp_path) / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 do not fit, model\.layers\.0\.mlp\.up_proj\.weight"):
        load_causal_lm(tmp_path, torch.float32, "cpu")


def test_a_weight_of_another_shape_is_an_error(tmp_path):
    path = save("llama", tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 95}))
    with pytest.raises(InputError, match=r"do not fit, model\.embed_tokens\.weight first"):
        load_causal_lm(tmp_path, torch.float32, "cpu")


def test_a_model_that_transformers_does_not_know_is_an_error(tmp_path):
    path = save("llama", tmp_path) / "config.json"
    path.write_text(json.dumps({"model_type": "home_made"}))
    for load in (load_causal_lm, StreamedModel):
        with pytest.raises(InputError, match="transformers must know the model"):
            load(tmp_path, torch.float32, "cpu")


def test_a_model_that_is_no_decoder_is_an_error(tmp_path):
    path = save("llama", tmp_path) / "config.json"
    path.write_text(json.dumps({"model_type": "vit"}))
    for load in (load_causal_lm, StreamedModel):
        with pytest.raises(InputError, match="must be a causal language model of transformers"):
            load(tmp_path, torch.float32, "cpu")


def test_a_damaged_file_is_named_before_it_is_mapped(tmp_path):
    path = save("llama", tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="must be a complete safetensors file"):
        load_causal_lm(tmp_path, torch.float32, "cpu")


def test_a_real_model_streams_exactly(shared):
    folder = shared / "models" / "stories260K"
    model = load_causal_lm(folder, torch.float32, "cpu")
    streamed = StreamedModel(folder, torch.float32, "cpu")
    with torch.no_grad():
        hidden, calls = streamed.embed(tokens())
        for index, call in enumerate(calls):
            hidden = streamed.run_block(streamed.load_block(index), hidden, call)
        assert torch.equal(streamed.head(hidden), model(tokens()).logits)
