"""A ternary training from the command line: what it leaves, and that no kill changes a byte."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
import yaml

from tests.flows.in_process import rebuild_result
from tests.flows.training_runs import Runs
from tests.tiny_exports import save_tiny_model, tiny_config

# The suite kills once; `make kill-test-ternary` kills ten times.
KILLS = int(os.environ.get("NORMTWEAK_TERNARY_KILLS", "1"))

STEPS, BLOCKS = 30, 3
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ternary")
    recipe = folder / "ternary.yaml"
    # Small, with a step long enough to be killed in.
    save_tiny_model(folder / "model", tiny_config("llama", num_hidden_layers=BLOCKS))
    (folder / "text.txt").write_text("What a ternary model makes of a text. " * 12)
    values = {
        "name": "ternary-test",
        "model": {"source": str(folder / "model")},
        "ternary": {
            "steps": STEPS, "batch": 2, "save_every": 2,
            "data": {"source": "random", "samples": 16, "length": 64},
        },
        "evaluation": {"perplexity": {"path": str(folder / "text.txt")}},
    }  # fmt: skip
    recipe.write_text(yaml.safe_dump(values))
    return folder, recipe


@pytest.fixture(scope="module")
def undisturbed(project, session_api):
    folder, recipe = project
    runs = Runs(folder / "undisturbed", recipe, session_api)
    return runs, runs.finish()


def test_a_run_leaves_a_verified_registered_model_and_its_curves(undisturbed):
    runs, result = undisturbed
    assert result["registered"]["version"] == 1
    assert result["training"]["steps"] == STEPS
    assert result["surgery"]["step_0"] == pytest.approx(result["surgery"]["float"], abs=1e-4)
    export, reports = Path(result["export_dir"]), Path(result["reports_dir"])
    config = json.loads((export / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "bitnet"
    assert config["use_rms_norm"] is True
    lines = (reports / "training.csv").read_text().splitlines()
    lambdas = [f"lambda/block_{i}" for i in range(BLOCKS)]
    assert lines[0].split(",") == ["step", "loss", "learning_rate", *lambdas]
    assert len(lines) == STEPS + 1
    assert [float(value) for value in lines[-1].split(",")[3:]] == [1.0] * BLOCKS
    assert (reports / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "## Surgery" in (reports / "summary.md").read_text()
    page = (reports / "report.html").read_bytes()
    assert f"{result['metrics']['perplexity/quantized']:.3f}" in page.decode()
    kept = [path.read_bytes() for path in (runs.root / "mlartifacts").rglob("report.html")]
    assert page in kept, "the page is not with the version"
    assert not any((runs.root / "artifacts" / "training").iterdir()), "checkpoints were left"


def test_a_plan_finds_every_stage_finished(undisturbed):
    runs, _ = undisturbed
    plan = runs.command("plan", str(runs.recipe))
    output, _ = plan.communicate(timeout=100)
    lines = output.decode().splitlines()
    assert plan.returncode == 0, lines
    assert lines[lines.index("stages") + 1 : -1] == [
        "  dry run: cached", "  data: cached", "  surgery: cached", "  float type: cached",
        f"  start from GPTQ: {BLOCKS} of {BLOCKS} cached", "  training: 10 of 10 cached",
        "  export: cached", "  verify: cached",
        "  size check: cached",
        "  evaluate: 2 of 2 cached", "  register: will run",
    ]  # fmt: skip


def test_the_curves_are_in_mlflow(undisturbed):
    from mlflow import MlflowClient

    runs, _ = undisturbed
    client = MlflowClient(f"sqlite:///{runs.root}/mlflow.db")
    place = client.get_experiment_by_name("ternary-test").experiment_id
    (run,) = client.search_runs([place], "tags.training_origin LIKE '%'")
    assert run.info.status == "FINISHED"
    assert run.data.params["objective"] == "kd"
    for name in ("train/loss", "lambda/block_0", "learning_rate"):
        history = client.get_metric_history(run.info.run_id, name)
        assert [entry.step for entry in history] == list(range(1, STEPS + 1))
    version = client.get_model_version("ternary-test", "1")
    assert "" not in version.tags.values()
    registered = client.get_run(version.run_id)
    for one in (run, registered):
        assert one.data.tags["mlflow.source.name"] == "normtweak ternary"
        assert one.data.params["model"] == version.tags["source_model"]
    assert (registered.data.params["bits"], registered.data.params["format"]) == ("1.58", "bitnet")
    assert registered.data.params["ternary.steps"] == str(STEPS)
    losses = client.get_metric_history(version.run_id, "train/loss")
    assert [entry.step for entry in losses] == list(range(1, STEPS + 1))
    assert client.get_metric_history(version.run_id, "train/held_out")[-1].step == STEPS


def test_the_registered_version_is_made_again_and_its_curves_stay(undisturbed, engine, tmp_path):
    from mlflow import MlflowClient

    runs, result = undisturbed
    uri = f"sqlite:///{runs.root}/mlflow.db"
    client, variables = MlflowClient(uri, uri), {"MLFLOW_TRACKING_URI": uri}

    def state() -> list:
        places = sorted(one.experiment_id for one in client.search_experiments())
        ended = sorted((one.info.run_id, one.info.end_time) for one in client.search_runs(places))
        return [places, ended, len(client.search_model_versions())]

    before = state()
    code, made = rebuild_result(
        runs.root, "models:/ternary-test/1", tmp_path / "r.json", **variables
    )
    assert (code, made["equal"]) == (0, True)
    assert made["export_sha256"] == result["export_sha256"]
    assert {"data", "surgery", "export", f"train {STEPS}"} <= set(made["cached"])
    assert not any(made["cached"].values())
    assert state() == before


def test_kills_and_ctrl_c_cost_steps_and_no_byte(project, undisturbed, session_api):
    folder, recipe = project
    _, expected = undisturbed
    runs, jitter = Runs(folder / "killed", recipe, session_api), random.Random(0)
    for number in range(KILLS):
        # A killed run goes on from its last checkpoint, so each kill comes later than the last.
        at = 2 + (STEPS - 8) * number // KILLS + jitter.randint(0, 2)
        assert runs.signal_at(at, signal.SIGKILL) == -signal.SIGKILL
        assert runs.steps()[-1] < STEPS, "the kill came after the training"
    begun = len(runs.steps())
    assert runs.signal_at(STEPS - 4, signal.SIGINT) == 130
    saved = runs.steps()[-1]
    assert saved < STEPS, "Ctrl-C came after the training"
    result = runs.finish()
    after = runs.steps()[begun:]
    assert after.count(saved) == 1, "the step that ran at Ctrl-C was not saved"
    assert result["export_sha256"] == expected["export_sha256"]
    assert result["registered"]["version"] == 1
