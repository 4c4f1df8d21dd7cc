"""The library writes what the flow writes: one call, the same bytes on the same settings."""

import json
from pathlib import Path

import pytest
import torch

from flows.recipes.quantize import Recipe
from normtweak_core import CalibrationConfig, quantize
from normtweak_core.calibration.generate import generate_windows
from normtweak_core.calibration.sets import set_of_texts
from normtweak_core.export.payload import payload_sha256
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.tokenizer import load_tokenizer
from tests.tiny_exports import save_tiny_model, tiny_config

TEXTS = [
    f"Line {i} of {i * i % 97} tells of {chr(97 + i % 26) * 3} and {i * 7919}." for i in range(40)
]
SETTINGS = {"bits": 3, "group_size": 32, "symmetric": True}
TUNE = {"steps": 2}
TRAINING = {"enabled": True, "steps": 4, "batch": 2, "lr": 0.02}
WINDOWS = {"samples": 16, "length": 32}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose two groups of norms and linears all move."""
    return save_tiny_model(tmp_path_factory.mktemp("library") / "model", tiny_config("llama"))


@pytest.fixture(scope="module")
def of_texts(model):
    return quantize(
        model,
        **SETTINGS,
        **WINDOWS,
        calibration=TEXTS,
        block_training=TRAINING,
        final_tune=TUNE,
        seed=3,
        progress=False,
    )


def test_the_library_writes_the_bytes_of_the_flow(engine, model, of_texts, tmp_path):
    from flows.quantize import quantize as flow

    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in TEXTS))
    values = {
        "name": "tiny-library",
        "seed": 3,
        "model": {"source": str(model)},
        "calibration": {"source": "text", "path": str(text), **WINDOWS},
        "quantization": SETTINGS,
        "block_training": TRAINING,
        "final_tune": TUNE,
        "evaluation": {"perplexity": {"path": str(text)}},
    }
    ran = flow(Recipe.parse(values))
    saved = of_texts.save(tmp_path / "saved")
    assert payload_sha256(saved) == payload_sha256(Path(ran["export_dir"]))
    assert of_texts.report.export_sha256 == payload_sha256(saved)
    told = json.loads((saved / "normtweak.json").read_text())
    recorded = json.loads((Path(ran["export_dir"]) / "normtweak.json").read_text())
    for same in ("export", "tensors", "files", "probe", "blocks", "final_tune"):
        assert told[same] == recorded[same]
    file = CalibrationConfig(source="text", path=str(text), **WINDOWS)
    again = quantize(
        model,
        **SETTINGS,
        calibration=file,
        block_training=TRAINING,
        final_tune=TUNE,
        seed=3,
        progress=False,
    )
    assert again.report.export_sha256 == of_texts.report.export_sha256


def test_token_ids_are_taken_as_they_are(model, of_texts):
    tokenizer = load_tokenizer(model)
    ids = set_of_texts(TEXTS, 16, tokenizer, 32, seed=3).input_ids
    result = quantize(
        model,
        **SETTINGS,
        calibration=ids.int(),
        block_training=TRAINING,
        final_tune=TUNE,
        seed=3,
        progress=False,
    )
    assert result.report.calibration.source == "tokens"
    assert result.report.export_sha256 == of_texts.report.export_sha256


@pytest.mark.long
def test_what_the_model_writes_is_what_the_function_for_it_gives(model):
    float_model = load_causal_lm(model, torch.float32, "cpu")
    tokenizer = load_tokenizer(model)
    ids = generate_windows(float_model, tokenizer, 16, 32, seed=3, languages=None).input_ids
    settings = SETTINGS | {"final_tune": False, "norm_tweak": False, "progress": False}
    asked = CalibrationConfig(languages=None)  # its vocabulary has no words to begin with
    own = quantize(model, **settings, calibration=asked, **WINDOWS, seed=3)
    given = quantize(model, **settings, calibration=ids)
    assert given.report.export_sha256 == own.report.export_sha256
