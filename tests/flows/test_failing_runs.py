"""Runs that must end in an error: nothing of theirs may reach the registry."""

import os
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.recipes.quantize import Recipe
from normtweak_core.errors import ProblemError, VerificationError
from normtweak_core.export.formats import compressed_tensors
from tasks.engine.events import read_events
from tests.tiny_exports import save_tiny_model, tiny_config


@pytest.fixture
def values(tmp_path) -> dict:
    """A recipe for a tiny model that no other test uses, so that nothing of it is cached."""
    save_tiny_model(tmp_path / "model", tiny_config("llama"), seed=20)
    (tmp_path / "text.txt").write_text("A text to look at what a model makes of it. " * 12)
    return {
        "model": {"source": str(tmp_path / "model")},
        "calibration": {"source": "random", "samples": 8, "length": 32},
        "quantization": {"bits": 4, "group_size": 32},
        "final_tune": {"enabled": False},
        "evaluation": {"perplexity": {"path": str(tmp_path / "text.txt")}},
    }


def failing_run(engine: Path, values: dict, error: type[Exception], match: str) -> set[str]:
    """Run a recipe that must fail and return the events of the run."""
    from flows.quantize import quantize

    before = len(read_events(engine))
    with pytest.raises(error, match=match):
        quantize(Recipe.parse(values))
    return {event["event"] for event in read_events(engine)[before:]}


def versions(name: str) -> list:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    return MlflowClient(uri, uri).search_model_versions(f"name = '{name}'")


def test_a_problem_ends_a_run_that_allows_none(engine, values):
    values |= {"name": "tiny-problem", "on_problem": "fail", "norm_tweak": {"lr": 100.0}}
    message = (
        r"^on_problem: fail allows no problem; found: block 0: norm tweak rolled back.*"
        r"Change the recipe, or set on_problem: warn$"
    )
    happened = failing_run(engine, values, ProblemError, message)
    assert "block" in happened
    assert happened.isdisjoint({"export", "verify", "register"})
    assert versions("tiny-problem") == []


def test_an_export_that_reads_otherwise_than_quantized_is_not_registered(
    engine, values, monkeypatch
):
    def with_one_wrong_code(codes, bits):
        words = pack_rows(codes, bits)
        words[0, 0] ^= 1
        return words

    pack_rows = compressed_tensors.pack_rows
    monkeypatch.setattr(compressed_tensors, "pack_rows", with_one_wrong_code)
    values |= {"name": "tiny-mismatch", "norm_tweak": {"enabled": False}}
    message = r"an independent reader finds something else in .*: expected .*, found .*report it"
    happened = failing_run(engine, values, VerificationError, message)
    assert {"export", "verify"} <= happened
    assert happened.isdisjoint({"evaluate", "register"})
    assert versions("tiny-mismatch") == []
