"""Trainings that two processes share, from the command line: killed or not, the same bytes."""

import os
import signal
import subprocess

import psutil
import pytest
import yaml

from flows.checks.preflight import preflight
from flows.recipes.ternary import TernaryRecipe
from normtweak_core.errors import InputError
from tests.flows.training_runs import Runs
from tests.tiny_exports import save_tiny_model, tiny_config

STEPS = 12
RANK = "tasks.stages.training.rank"
TRAINING = {
    "steps": STEPS, "batch": 4, "save_every": 2,
    "data": {"source": "random", "samples": 16, "length": 32},
}  # fmt: skip
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("shared")
    save_tiny_model(made / "model", tiny_config("llama"))
    (made / "text.txt").write_text("What a model makes of a text. " * 14)
    return made


def recipe(folder, flow: str, source: object, training: dict, **values):
    path = folder / f"{flow}.yaml"
    values |= {
        "name": f"shared-{flow}",
        "model": {"source": str(source)},
        "evaluation": {"perplexity": {"path": str(folder / "text.txt")}},
    }
    path.write_text(yaml.safe_dump(values | ({flow: training} if training else {})))
    return path


def ranks_of(run: subprocess.Popen) -> list[psutil.Process]:
    """Return the processes that share the training of a run."""
    found = psutil.Process(run.pid).children(recursive=True)
    return [one for one in found if RANK in one.cmdline()]


def test_a_number_that_does_not_divide_the_batch_is_refused_before_the_start(folder, tmp_path):
    path = recipe(folder, "ternary", folder / "model", TRAINING, devices=3)
    with pytest.raises(InputError, match=r"^devices must divide batch, .* found 3 processes of 1"):
        preflight(TernaryRecipe.load(path), tmp_path)


@pytest.mark.long
def test_a_killed_process_and_ctrl_c_cost_steps_and_no_byte(folder, session_api):
    path = recipe(folder, "ternary", folder / "model", TRAINING, devices=2)
    expected = Runs(folder / "whole", path, session_api).finish()
    plan, _ = Runs(folder / "whole", path, session_api).command("plan", path).communicate()
    assert f"trained for {STEPS * 4 * 32:,} tokens by 2 processes" in plan.decode()
    runs, seen = Runs(folder / "ended", path, session_api), []

    def kill_one(run: subprocess.Popen) -> None:
        seen.extend(ranks_of(run))
        os.kill(seen[1].pid, signal.SIGKILL)

    code, output = runs.ended_at(3, kill_one)
    assert code == 1
    assert "was ended by SIGKILL" in output
    assert "the same command goes on from there" in output
    assert runs.steps()[-1] < STEPS, "the kill came after the training"
    assert len(seen) == 2
    assert not any(one.is_running() for one in seen)
    begun = len(runs.steps())
    assert runs.signal_at(6, signal.SIGINT) == 130
    assert runs.steps()[begun] > 1, "it began anew"
    saved, begun = runs.steps()[-1], len(runs.steps())
    assert saved < STEPS, "Ctrl-C came after the training"
    result = runs.finish()
    assert runs.steps()[begun:] == list(range(saved + 1, STEPS + 1))
    assert result["export_sha256"] == expected["export_sha256"]
    assert result["metrics"] == expected["metrics"]


@pytest.mark.long
def test_a_fine_tuning_that_was_killed_leaves_no_process_and_ends_in_the_same_bytes(
    folder, session_api
):
    start = recipe(
        folder, "quantize", folder / "model", {},
        calibration={"source": "random", "samples": 8, "length": 32},
        quantization={"bits": 2, "group_size": 32}, final_tune={"enabled": False},
    )  # fmt: skip
    export = Runs(folder / "start", start, session_api, "quantize").finish()["export_dir"]
    path = recipe(folder, "finetune", export, TRAINING | {"block_steps": 2}, devices=2)
    expected = Runs(folder / "tuned", path, session_api, "finetune").finish()
    runs, seen = Runs(folder / "killed", path, session_api, "finetune"), []

    def kill(run: subprocess.Popen) -> None:
        seen.extend(ranks_of(run))
        run.kill()

    assert runs.ended_at(5, kill)[0] == -signal.SIGKILL
    assert len(seen) == 2
    assert not psutil.wait_procs(seen, timeout=20)[1], "processes outlive their run"
    begun = len(runs.steps())
    assert runs.finish()["export_sha256"] == expected["export_sha256"]
    assert runs.steps()[begun] > 1, "it began anew"
