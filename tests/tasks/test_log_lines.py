"""Log lines as JSON: what a collector of logs sorts by stands in fields of its own."""

import datetime
import json
import logging

import pytest

from flows.cli import main
from tasks.engine.log_files import log_plain_lines, logged_to_file, traceback_text, working_on

LOGGER = logging.getLogger("tasks.of_this_test")


@pytest.fixture
def as_json(monkeypatch, tmp_path, capsys):
    """Lines are JSON; returns those that were written to standard error."""
    monkeypatch.setenv("NORMTWEAK_LOG", "json")
    monkeypatch.setenv("NORMTWEAK_HOME", str(tmp_path))
    loggers = [logging.getLogger(name) for name in ("flows", "tasks", "normtweak_core")]
    before = [(one.level, one.propagate) for one in loggers]
    handler = log_plain_lines()
    for one in loggers:
        one.setLevel(logging.INFO)
    yield lambda: capsys.readouterr().err.splitlines()
    for one, (level, propagate) in zip(loggers, before, strict=True):
        one.removeHandler(handler)
        one.level, one.propagate = level, propagate


def test_a_line_is_an_object_with_time_level_and_process(as_json):
    LOGGER.warning('cannot say "%s"\nin one line: %d', "größer", 3)
    (line,) = as_json()
    told = json.loads(line)
    when = datetime.datetime.fromisoformat(told.pop("time"))
    assert abs((datetime.datetime.now(datetime.UTC) - when).total_seconds()) < 60
    assert told.pop("pid") > 0
    assert told == {
        "level": "WARNING",
        "logger": "tasks.of_this_test",
        "message": 'cannot say "größer"\nin one line: 3',
    }


def test_in_a_run_it_says_which_run_stage_and_block(as_json, engine, tmp_path):
    from prefect import flow, task
    from prefect.runtime import flow_run

    @task(name="block", task_run_name="block 3")
    def block():
        LOGGER.info("inside")

    @flow(name="logging", flow_run_name="tiny, 3 bits")
    def logging_flow():
        LOGGER.info("between")
        with working_on("block", "block 3"):
            block()
            LOGGER.info("behind")
        return flow_run.id

    with logged_to_file("test") as file:
        run = logging_flow()
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    shown = [json.loads(line) for line in as_json() if "tiny, 3" in line]
    assert kept == shown
    between, inside, behind = kept
    assert (between["run"], between["run_name"]) == (run, "tiny, 3 bits")
    assert "stage" not in between
    for line in (inside, behind):
        assert {key: line[key] for key in ("run", "run_name", "stage", "part", "block")} == {
            "run": run, "run_name": "tiny, 3 bits", "stage": "block", "part": "block 3", "block": 3,
        }  # fmt: skip


def test_a_traceback_stays_within_its_line(as_json):
    try:
        raise ValueError("of a test")
    except ValueError as error:
        LOGGER.exception("it failed")
        text = traceback_text(error)
    for line in (*as_json(), text):
        told = json.loads(line)
        assert told["traceback"].splitlines()[-1] == "ValueError: of a test"
    assert told["message"] == "ValueError: of a test"


def test_lines_are_plain_unless_asked_otherwise(monkeypatch):
    monkeypatch.delenv("NORMTWEAK_LOG", raising=False)
    assert traceback_text(ValueError("of a test")) == "ValueError: of a test\n"


def test_another_form_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("NORMTWEAK_LOG", "xml")
    monkeypatch.setenv("NORMTWEAK_HOME", str(tmp_path))
    assert main(["register", "--pending"]) == 2
    assert "NORMTWEAK_LOG must be plain or json; found 'xml'" in capsys.readouterr().err
