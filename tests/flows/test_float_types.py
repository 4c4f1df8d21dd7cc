"""Exports in the float type in which their readers can run them, from the model to the registry."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.recipes.quantize import Recipe
from flows.recipes.ternary import TernaryRecipe
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.formats.checks import FloatTypeError
from tasks.results import FloatType, RefusedExport
from tasks.stages.retry import EXACT, another_float_type, next_float_type
from tests.tiny_exports import save_tiny_model, tiny_config

TEXT = "A text to look at what a model makes of it. " * 12


def overflowing(folder: Path) -> Path:
    """Write a bfloat16 model in which the first token of a document leaves the range of float16.

    As in Gemma 3: one number of the residual stream reaches 4e5, made by a product inside an MLP.
    """
    save_tiny_model(folder, tiny_config("llama", bos_token_id=0))
    path = folder / "model.safetensors"
    tensors, mlp = load_file(path), "model.layers.0.mlp"
    tensors["model.embed_tokens.weight"][:, 3] = 0.0
    tensors["model.embed_tokens.weight"][0] = torch.eye(64)[3] * 20
    for part in ("gate_proj", "up_proj"):
        tensors[f"{mlp}.{part}.weight"][5] = torch.eye(64)[3] * 8
    tensors[f"{mlp}.down_proj.weight"][:, 5] = torch.eye(64)[7] * 100
    halves = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(halves, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return folder


def generated(folder: str) -> tuple[torch.dtype, str]:
    """Return the dtype of a model as anybody opens it, and what it goes on with."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[0, *tokenizer("a b").input_ids]])
    with torch.compiler.set_stance("force_eager"), torch.inference_mode():
        assert model(input_ids=ids).logits.isfinite().all()
        told = model.generate(ids, max_new_tokens=4, do_sample=False)
    return model.dtype, tokenizer.decode(told[0, ids.shape[1] :])


def test_a_model_whose_activations_leave_float16_is_registered_where_it_generates(engine, tmp_path):
    from flows.quantize import quantize

    (tmp_path / "text.txt").write_text(TEXT)
    values = {
        "name": "tiny-overflow",
        "model": {"source": str(overflowing(tmp_path / "model"))},
        "calibration": {"source": "random", "samples": 8, "length": 32},
        "quantization": {"bits": 4, "group_size": 32},
        "norm_tweak": {"enabled": False},
        "final_tune": {"enabled": False},
        "evaluation": {"perplexity": {"path": str(tmp_path / "text.txt")}},
    }
    result = quantize(Recipe.parse(values))
    dtype, text = generated(result["export_dir"])
    assert dtype == torch.bfloat16
    assert text
    lineage = json.loads((Path(result["reports_dir"]) / "lineage.json").read_text())
    assert lineage["export_dtype"] == "bfloat16"
    refused = lineage["float_types_refused"]
    assert refused.startswith("float16: activations of block 0 reach ")
    assert refused.endswith(", beyond 65504")
    words = f"not {refused}"
    assert words in (Path(result["reports_dir"]) / "summary.md").read_text()
    assert words in (Path(result["reports_dir"]) / "report.html").read_text()
    metrics = result["metrics"]
    # What readers compute and what float32 makes of the same weights, both of them measured.
    assert metrics["kl/mean_float32"] != metrics["kl/mean"]
    assert metrics["kl/mean_float32"] == pytest.approx(metrics["kl/mean"], rel=0.2, abs=0.02)

    asked = values | {"export": {"dtype": "float16"}}
    with pytest.raises(FloatTypeError, match=r"float16 does not: activations of block 0 reach"):
        quantize(Recipe.parse(asked))


@pytest.mark.long
def test_a_ternary_model_whose_scales_leave_float16_is_trained_and_registered(engine, tmp_path):
    from flows.ternary import ternary

    shape = {"hidden_size": 128, "intermediate_size": 352, "vocab_size": 361}
    model = AutoModelForCausalLM.from_config(tiny_config("llama", **shape, bos_token_id=1))
    save_tiny_model(tmp_path / "model", model.config)
    model.save_pretrained(tmp_path / "model")  # as transformers draws it: small weights
    (tmp_path / "text.txt").write_text(TEXT)
    values = {
        "name": "tiny-scales",
        "model": {"source": str(tmp_path / "model")},
        "ternary": {
            "steps": 4, "batch": 2, "data": {"source": "random", "samples": 16, "length": 32},
        },
        "evaluation": {"perplexity": {"path": str(tmp_path / "text.txt")}},
    }  # fmt: skip
    result = ternary(TernaryRecipe.parse(values))
    lineage = json.loads((Path(result["reports_dir"]) / "lineage.json").read_text())
    assert lineage["export_dtype"] == "bfloat16"
    assert lineage["float_types_refused"].startswith("float16: the two scales of model.layers.")
    assert generated(result["export_dir"])[0] == torch.bfloat16
    assert "| float type | bfloat16" in (Path(result["reports_dir"]) / "summary.md").read_text()
    with pytest.raises(FloatTypeError, match="float16 does not: the two scales of"):
        ternary(TernaryRecipe.parse(values | {"export": {"dtype": "float16"}}))


def refused(dtype: str, *holds: str) -> RefusedExport:
    return RefusedExport(dtype=dtype, why=f"{dtype} overflows", holds=list(holds))


def test_an_export_that_does_not_hold_is_made_again_in_what_was_found_to_hold():
    work = SimpleNamespace(recipe=SimpleNamespace(export=ExportConfig()))
    found = {
        "float type": FloatType(dtype="float16"),
        "export": refused("float16", "bfloat16", "float32"),
    }
    again = another_float_type()
    (chosen,) = again(work, found).values()
    assert chosen.dtype == "bfloat16"
    assert again(work, {"float type": chosen, "export": "an export"}) == {}


@pytest.mark.parametrize(
    ("config", "found", "remedy"),
    [
        ({"dtype": "float16"}, refused("float16", "float32"), "set it to float32, which holds it"),
        ({}, refused("float16"), "no other float type was found to hold it"),
        ({"format": "gptq"}, refused("float16", "bfloat16"), "gptq is read in float16 alone"),
    ],
)
def test_without_another_float_type_the_error_advises_what_was_found(config, found, remedy):
    with pytest.raises(FloatTypeError, match=remedy):
        next_float_type(ExportConfig(**config), FloatType(dtype="float16"), found)


def test_trained_scales_go_on_in_float32_alone():
    found = refused("float16", "bfloat16", "float32")
    chosen = next_float_type(ExportConfig(), FloatType(dtype="float16"), found, EXACT)
    assert (chosen.dtype, chosen.refused) == ("float32", {"float16": "float16 overflows"})
    assert chosen.in_words() == "float32; not float16: float16 overflows"
