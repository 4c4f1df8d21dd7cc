"""Registrations in processes of their own: two at once, and killed ones that are run again."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.entities import LoggedModelStatus

from tests.children import QUICK

# Kills its own process just before (or after) a named step; everything else is the real thing.
CHILD = """
import json, os, signal, sys
from pathlib import Path
import mlflow.store.artifact.local_artifact_repo
from mlflow import MlflowClient

arguments, step, when = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
for key in ("export_dir", "artifact_root", "lock_dir"):
    arguments[key] = Path(arguments[key])
arguments["reports"] = [Path(report) for report in arguments["reports"]]

owner, name = MlflowClient, step
if step == "half a database":
    from sqlalchemy.engine.default import DefaultDialect as Dialect

    execute = Dialect.do_execute

    def killed_after(self, cursor, statement, *rest):
        execute(self, cursor, statement, *rest)
        if statement.startswith("ALTER TABLE"):
            os.kill(os.getpid(), signal.SIGKILL)

    Dialect.do_execute, step = killed_after, "nothing"
if step == "half an upload":
    owner, name = mlflow.store.artifact.local_artifact_repo.shutil, "copyfile"
real, calls = getattr(owner, name, None), []

def killing(*args, **kwargs):
    calls.append(args)
    if when == "after":
        real(*args, **kwargs)
    if step != "half an upload" or len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

from tasks.registry.versions import register_export
if step != "nothing":
    setattr(owner, name, killing)
print(register_export(**arguments).model_dump_json())
"""


def start(registry, step: str = "nothing", when: str = "before") -> subprocess.Popen:
    arguments = registry.arguments()
    arguments["reports"] = [str(path) for path in arguments["reports"]]
    command = [sys.executable, "-c", QUICK + CHILD, json.dumps(arguments, default=str), step, when]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_make_one_version_in_a_new_database(registry):
    (registry.root / "mlflow.db").unlink()
    both = [start(registry), start(registry)]
    answers = []
    for process in both:
        out, err = process.communicate()
        assert process.returncode == 0, err[-2000:]
        answers.append(json.loads(out.splitlines()[-1]))
    assert sorted(answer.pop("created") for answer in answers) == [False, True]
    assert answers[0] == answers[1]
    assert [int(version.version) for version in registry.versions()] == [1]
    assert len(registry.logged_models()) == 1


def test_a_process_killed_while_it_makes_the_database_leaves_none(registry):
    (registry.root / "mlflow.db").unlink()
    process = start(registry, "half a database")
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err[-2000:]
    assert not (registry.root / "mlflow.db").exists()
    assert registry.register().version == 1
    assert [int(version.version) for version in registry.versions()] == [1]


@pytest.mark.parametrize(
    ("step", "when"),
    [
        ("create_logged_model", "before"),
        ("half an upload", "before"),
        ("finalize_logged_model", "before"),
        ("finalize_logged_model", "after"),
        ("create_model_version", "after"),
    ],
)
def test_a_killed_registration_ends_as_one_version_when_run_again(registry, step, when):
    process = start(registry, step, when)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err[-2000:]

    registered = registry.register()

    assert registered.version == 1
    assert registered.created is (step != "create_model_version")
    assert [int(version.version) for version in registry.versions()] == [1]
    (model,) = registry.logged_models()
    assert model.status == LoggedModelStatus.READY
    client = registry.client
    (run,) = client.search_runs([client.get_experiment_by_name("normtweak").experiment_id])
    assert run.info.run_id == model.source_run_id
    assert run.info.status == "FINISHED"
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert len(client.get_metric_history(run.info.run_id, "kl/mean")) == 1
    assert int(client.get_model_version_by_alias("tiny-w4", "candidate").version) == 1
    stored = model.artifact_location.removeprefix("file://")
    for file in registry.export.rglob("*"):
        copy = Path(stored) / "model" / file.relative_to(registry.export)
        assert file.is_dir() or copy.read_bytes() == file.read_bytes()
    assert not list((registry.root / "locks").glob("*.staging"))
