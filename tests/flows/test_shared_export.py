"""Recipes that lead to one export: each is told apart in the export folder and in the registry."""

import json
import os
from pathlib import Path

from mlflow import MlflowClient

from flows.recipes.file import recipe_sha256
from flows.recipes.quantize import Recipe
from tests.tiny_exports import save_tiny_model, tiny_config


def registered(result: dict) -> tuple[dict[str, str], Path]:
    """Return the tags of a run's version and the folder of its files."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    client = MlflowClient(uri, uri)
    version = client.get_model_version(
        result["registered"]["name"], str(result["registered"]["version"])
    )
    location = client.get_logged_model(version.tags["logged_model_id"]).artifact_location
    return version.tags, Path(location.removeprefix("file://"))


def check(recipe, result: dict) -> None:
    """What is said about the export, here and in the registry, is about this recipe."""
    reports = Path(result["reports_dir"])
    assert reports.parent == Path(result["export_dir"]) / "reports"
    assert Recipe.load(reports / "recipe.yaml") == recipe
    tags, stored = registered(result)
    assert tags["recipe_sha256"] == recipe_sha256(recipe)
    lineage = json.loads((reports / "lineage.json").read_text())
    told = {name: value or "none" for name, value in lineage.items()}  # no tag is empty
    assert told.items() <= tags.items()
    assert lineage["export_sha256"] == result["export_sha256"]
    assert tags["prefect.flow_run_id"] == result["flow_run_id"]
    assert float(tags["perplexity/quantized"]) == result["metrics"]["perplexity/quantized"]
    files = {path.name: path.read_bytes() for path in reports.iterdir()}
    assert {path.name: path.read_bytes() for path in (stored / "reports").iterdir()} == files
    assert not (stored / "model" / "reports").exists()


def test_recipes_of_one_export_keep_apart_what_is_theirs(engine, tmp_path):
    from flows.quantize import quantize

    save_tiny_model(tmp_path / "model", tiny_config("llama"), seed=21)
    (tmp_path / "text.txt").write_text("A text to look at what a model makes of it. " * 12)
    values = {
        "name": "tiny-first",
        "model": {"source": str(tmp_path / "model")},
        "calibration": {"source": "random", "samples": 8, "length": 32},
        "quantization": {"method": "rtn", "bits": 4, "propagation": {"alpha": 0.0}},
        "norm_tweak": {"enabled": False},
        "final_tune": {"enabled": False},
        "evaluation": {"perplexity": {"path": str(tmp_path / "text.txt")}},
    }
    first = Recipe.parse(values)
    registry = {"alias": "nightly", "promote_to": "stable"}
    named = Recipe.parse(values | {"name": "tiny-second", "registry": registry})
    shorter = {"path": str(tmp_path / "text.txt"), "max_tokens": 64}
    evaluated = Recipe.parse(values | {"evaluation": {"perplexity": shorter}})

    results = [quantize(first)]
    check(first, results[0])
    manifest = (Path(results[0]["export_dir"]) / "normtweak.json").read_bytes()
    for recipe in (named, evaluated):
        results.append(quantize(recipe))
        check(recipe, results[-1])
    assert len({result["export_dir"] for result in results}) == 1
    assert len({result["reports_dir"] for result in results}) == 3
    assert [result["registered"]["version"] for result in results] == [1, 1, 1]
    assert results[1]["registered"]["name"] == "tiny-second"
    assert [set(result["registered"]["aliases"]) for result in results[:2]] == [
        {"candidate", "champion"}, {"nightly", "stable"},
    ]  # fmt: skip
    check(named, results[1])  # the third run touched the first name alone
    assert results[2]["metrics"]["tokens"] < results[0]["metrics"]["tokens"]

    # The manifest stays that of the run that wrote the folder, and says so.
    assert (Path(results[0]["export_dir"]) / "normtweak.json").read_bytes() == manifest
    entries = json.loads(manifest)
    assert entries["recipe"]["name"] == "tiny-first"
    assert "those of the run that wrote this folder" in entries["about"]
