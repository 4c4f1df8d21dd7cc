import io
import logging
import os
import re
import sys
from pathlib import Path

import pytest

from tasks.engine.environment import (
    FOLDERS,
    OUR_LOGGERS,
    default_variables,
    prepare_environment,
    state_root,
)
from tasks.engine.log_files import log_plain_lines

PREPARE = """
import json, os, sys
from pathlib import Path
from tasks.engine.environment import prepare_environment
root = prepare_environment(Path(sys.argv[1]) if sys.argv[1:] else None)
print(root)
print(json.dumps(dict(os.environ)))
print(sorted({"torch", "prefect", "mlflow", "pydantic"} & set(sys.modules)))
"""

SETTINGS = """
import sys
from pathlib import Path
from tasks.engine.environment import prepare_environment
root = prepare_environment(Path(sys.argv[1]))
from prefect.settings import get_current_settings
settings = get_current_settings()
server = settings.server
assert settings.home == root / "prefect", settings.home
assert settings.results.local_storage_path == root / "results"
assert server.ephemeral.startup_timeout_seconds == 120
assert server.analytics_enabled is False
assert server.services.task_run_recorder.batch_size == 100
assert server.services.task_run_recorder.read_batch_size == 100
assert server.services.task_run_recorder.flush_interval == 1
assert server.services.event_persister.batch_size == 200
assert server.services.event_persister.read_batch_size == 100
assert settings.logging.to_api.when_missing_flow == "ignore"
import logging, prefect.main
logging.getLogger("prefect.flow_runs").info("engine chatter")
logging.getLogger("tasks.somewhere").warning("our warning")
assert any("API" in type(h).__name__ for h in logging.getLogger("tasks").handlers)
prepare_environment(Path(sys.argv[1]))  # a second time changes nothing and is allowed
"""


def outside_variables() -> dict[str, str]:
    """The variables of ours that this test process has, emptied for a child to start without."""
    return {name: "" for name in default_variables(Path("/")) if name in os.environ}


@pytest.fixture
def clean(monkeypatch):
    for name in outside_variables():
        monkeypatch.delenv(name)


def run(program, *arguments, **environment) -> tuple[Path, dict[str, str], str]:
    lines = program("-c", PREPARE, *arguments, **environment).finish().splitlines()
    return Path(lines[0]), __import__("json").loads(lines[1]), lines[2]


def test_every_variable_is_set_and_every_folder_made_with_the_standard_library_only(
    clean, program, tmp_path
):
    root, variables, imported = run(program, str(tmp_path / "state"), OMP_WAIT_POLICY="ACTIVE")
    assert root == tmp_path / "state"
    for name, value in default_variables(root).items():
        assert variables[name] == ("ACTIVE" if name == "OMP_WAIT_POLICY" else value), name
    assert variables["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    assert variables["MLFLOW_TRACKING_URI"] == f"sqlite:///{root}/mlflow.db"
    assert sorted(path.name for path in root.iterdir()) == sorted(FOLDERS)
    assert imported == "[]"


def test_the_root_comes_from_the_variable_and_is_made_absolute(clean, program, tmp_path):
    root, variables, _ = run(program, NORMTWEAK_HOME=str(tmp_path / "a" / ".." / "b"))
    assert root == tmp_path / "b"
    assert variables["NORMTWEAK_HOME"] == str(root)


def test_values_the_user_has_set_win(clean, program, tmp_path):
    own = {"PREFECT_HOME": "/elsewhere", "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": "http://m"}
    _, variables, _ = run(program, str(tmp_path), **own)
    assert {name: variables[name] for name in own} == own


def test_prefect_understands_what_was_set_and_stays_quiet_on_the_terminal(clean, program, tmp_path):
    text = program("-c", SETTINGS, str(tmp_path)).finish()
    assert "engine chatter" not in text
    assert "WARNING our warning" in text


def test_a_file_in_the_place_of_the_root_is_refused(clean, program, tmp_path):
    (tmp_path / "state").touch()
    one = program("-c", PREPARE, str(tmp_path / "state"))
    assert one.process.wait(30) == 1
    assert "InputError: All state is kept under" in one.text()
    assert "is a file, not a folder; remove it or choose a folder you may write" in one.text()


def test_a_root_that_cannot_be_written_is_refused(clean, program):
    one = program("-c", PREPARE, "/proc/normtweak")
    assert one.process.wait(30) == 1
    assert "InputError: All state is kept under /proc/normtweak, which must be writ" in one.text()
    assert "choose a folder you may write to with NORMTWEAK_HOME." in one.text()


def test_coming_too_late_is_an_error(tmp_path, clean):
    import torch  # noqa: F401

    with pytest.raises(RuntimeError, match=r"must run before .*torch is imported"):
        prepare_environment(tmp_path)


def test_the_root_is_found_without_a_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("NORMTWEAK_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert state_root() == tmp_path / ".normtweak"


@pytest.fixture
def plain_lines():
    handler = log_plain_lines()
    yield
    for name in OUR_LOGGERS:
        logging.getLogger(name).removeHandler(handler)
        logging.getLogger(name).propagate = True


def test_plain_lines_are_ours_only_and_come_once(capsys, plain_lines):
    logging.getLogger("tasks.somewhere").warning("block 3 done")
    logging.getLogger("elsewhere").error("not ours")
    assert capsys.readouterr().err.splitlines()[0].endswith(" block 3 done")


def test_plain_lines_follow_standard_error(monkeypatch, plain_lines):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    logging.getLogger("flows.somewhere").warning("50 %% of %s", "it")
    assert re.fullmatch(r"\d\d:\d\d:\d\d 50 % of it\n", shown.getvalue())
