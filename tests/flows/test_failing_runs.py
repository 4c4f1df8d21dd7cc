"""Runs that must end in an error: nothing of theirs may reach the registry."""

import contextlib
import http.server
import os
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.recipes.quantize import Recipe
from normtweak_core.errors import ProblemError, VerificationError
from normtweak_core.export.formats import compressed_tensors
from tasks.engine.events import read_events
from tasks.registry.waiting import NotRegisteredError, all_waiting
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


@contextlib.contextmanager
def registry_until(event: str, engine: Path):
    """Yield the address of what answers as MLflow does, until a run comes to an event."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"OK")

        def log_message(self, *_):
            pass

    begun = len(read_events(engine))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def watch() -> None:
        while all(entry["event"] != event for entry in read_events(engine)[begun:]):
            time.sleep(0.05)
        server.shutdown()
        server.server_close()

    threads = [threading.Thread(target=work, daemon=True) for work in (server.serve_forever, watch)]
    for thread in threads:
        thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    for thread in threads:
        thread.join(timeout=10)


def test_a_finished_model_outlives_a_registry_that_goes_down_meanwhile(engine, values, monkeypatch):
    from flows.quantize import quantize
    from tasks.stages.register import PAUSES, register_stage

    values |= {"name": "tiny-waiting", "quantization": {"bits": 8, "group_size": 32}}
    with registry_until("export", engine) as address, monkeypatch.context() as down:
        down.setenv("MLFLOW_TRACKING_URI", address)
        down.setattr(register_stage, "retry_delay_seconds", [0.0] * len(PAUSES))
        message = r"the model is finished and not registered \(.* does not .Connection refused"
        happened = failing_run(engine, values, NotRegisteredError, message)
    assert {"evaluate", "register"} <= happened
    begun = [entry for entry in read_events(engine) if entry.get("part") == "begin"]
    tried = [entry for entry in begun if entry["event"] == "register"][-len(PAUSES) - 1 :]
    assert len({entry["flow_run"] for entry in tried}) == 1  # once, and once after each pause
    (model,) = all_waiting(engine)
    assert (model.name, model.registry) == ("tiny-waiting", address)
    assert versions("tiny-waiting") == []

    made = quantize(Recipe.parse(values))
    assert all(made["cached"].values())
    assert made["registered"]["created"] is True
    assert made["registered"]["version"] == 1
    assert made["export_sha256"] == model.export_sha256
    assert all_waiting(engine) == []
