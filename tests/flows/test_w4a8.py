"""A whole run with 8-bit activations: what is told of it, and its version in other hands."""

import json
import os
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from flows.recipes.quantize import Recipe
from normtweak_core.export.loading import load_export
from tests.tiny_exports import save_tiny_model, tiny_config


@pytest.fixture(scope="module")
def done(engine_environment, session_api, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMTWEAK_HOME", str(engine_environment))
        from flows.quantize import quantize

        folder = tmp_path_factory.mktemp("w4a8")
        save_tiny_model(folder / "model", tiny_config("llama"))
        (folder / "text.txt").write_text("A text to look at what a model makes of it. " * 12)
        recipe = {
            "name": "tiny-w4a8",
            "model": {"source": str(folder / "model")},
            "calibration": {"samples": 8, "length": 32, "languages": None},
            "quantization": {
                "bits": 4, "group_size": 32, "symmetric": True, "activation_bits": 8,
                "smoothing": {"alpha": 0.5},
            },
            "effort": "fast",
            "final_tune": {"enabled": True, "steps": 2},
            "evaluation": {"perplexity": {"path": str(folder / "text.txt"), "max_tokens": 64}},
            "devices": 2 if "NORMTWEAK_ALL_RANKS" in os.environ else 1,
        }  # fmt: skip
        yield quantize(Recipe.parse(recipe)), folder / "model"


def test_report_card_and_version_tell_the_widths(done):
    result, _ = done
    assert "-w4a8g32-" in result["export_dir"]
    summary = (Path(result["reports_dir"]) / "summary.md").read_text()
    told = "in 4 bits by GPTQ (symmetric, groups of 32), reading 8-bit activations"
    assert f"{told} (smoothed, alpha 0.5): W4A8" in summary
    card = (Path(result["export_dir"]) / "README.md").read_text()
    assert "tags: [quantized, 4-bit, w4a8, compressed-tensors]" in card
    assert "(symmetric, groups of 32)\nthat read 8-bit activations; everything else is" in card
    registered = result["registered"]
    tags = MlflowClient().get_model_version(registered["name"], str(registered["version"])).tags
    assert (tags["bits"], tags["activation_bits"], tags["scheme"]) == ("4", "8", "W4A8")


def test_the_version_computes_elsewhere_what_was_measured(done):
    import mlflow
    from transformers import AutoModelForCausalLM

    result, source = done
    uri = f"models:/{result['registered']['name']}/{result['registered']['version']}"
    folder = Path(mlflow.artifacts.download_artifacts(uri)) / "model"
    ids = torch.arange(3, 35)[None]
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    manifest = json.loads((folder / "normtweak.json").read_text())
    assert manifest["export"]["activation_bits"] == 8
    ours = load_export(Path(result["export_dir"]), source, torch.float32, "cpu")
    with torch.inference_mode():
        found, wanted = (model(ids, use_cache=False).logits for model in (stock, ours))
    # Asked for float32, the reader multiplies codes and scales in it, which is another rounding.
    assert (found - wanted).abs().mean() < 0.05 * wanted.abs().max()
    (text,) = mlflow.pyfunc.load_model(uri).predict(["A text"], params={"max_new_tokens": 4})
    assert isinstance(text, str)
