"""A whole run with `export.format: gptq`, where `make reader-gptq` has made its reader."""

import pytest

from flows.recipes.quantize import Recipe
from tests.gptq_reader import needs_gptq_reader
from tests.tiny_exports import save_tiny_model, tiny_config

pytestmark = needs_gptq_reader


@pytest.mark.long
def test_a_run_to_gptq_measures_the_same_model_as_the_default_format(engine, tmp_path):
    from flows.quantize import quantize

    save_tiny_model(tmp_path / "model", tiny_config("llama"))
    (tmp_path / "text.txt").write_text("A text to look at what a model makes of it. " * 12)
    results = {
        form: quantize(
            Recipe.parse(
                {
                    "name": f"tiny-{form}",
                    "model": {"source": str(tmp_path / "model")},
                    "calibration": {"source": "random", "samples": 8, "length": 32},
                    "quantization": {"bits": 4, "group_size": 32},
                    "final_tune": {"steps": 2},
                    "evaluation": {"perplexity": {"path": str(tmp_path / "text.txt")}},
                    "export": {"format": form},
                }
            )
        )
        for form in ("compressed-tensors", "gptq")
    }
    metrics = {
        form: {k: v for k, v in result["metrics"].items() if k.startswith(("perp", "kl", "top1"))}
        for form, result in results.items()
    }
    assert metrics["gptq"] == metrics["compressed-tensors"]
    assert metrics["gptq"]["perplexity/quantized"] != metrics["gptq"]["perplexity/float"]
    gptq = results["gptq"]
    assert all(row["cached"] for row in gptq["blocks"])  # they do not depend on the format
    assert gptq["registered"]["version"] == 1
    assert gptq["export_sha256"] != results["compressed-tensors"]["export_sha256"]
