"""A run that is cancelled ends as Cancelled, and one that has done its work as Completed."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable

import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter
from prefect.exceptions import CancelledRun
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Crashed

from flows.pipeline.operated import CANCELLED, operated
from normtweak_core.training.interrupt import deferred_interrupts
from tasks.engine.environment import OUR_LOGGERS
from tasks.engine.runs import mark_dead_runs
from tasks.server import cancelling
from tasks.server.api import ServerError, _send_what_is_queued
from tasks.server.cancelling import last_call, raise_if_cancelled

SECONDS = 10  # the longest that a cancel may take


@pytest.fixture(autouse=True)
def looks_often(engine, monkeypatch):
    monkeypatch.setattr(cancelling, "SECONDS_BETWEEN_LOOKS", 0.1)


def set_state(run_id: str, state, force: bool = False) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, state, force=force)


def state_of(run_id: str):
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id).state


def started(body: Callable[[str], object], name: str = "tested") -> tuple[object, str]:
    """Run a body in a flow; return what the flow gave or raised, and the id of its run."""
    known = []

    @flow(name=name)
    @operated
    def tested():
        known.append(flow_run.id)
        return body(flow_run.id)

    try:
        return tested(), known[0]
    except BaseException as error:
        return error, known[0]


def soon(act: Callable[[], None]) -> None:
    threading.Timer(0.3, act).start()


@pytest.mark.parametrize(
    ("state", "force"),
    [(Cancelling(), False), (Cancelled(message="by hand"), False), (Cancelled(), True)],
)
def test_a_cancel_ends_whatever_the_body_waits_for(state, force):
    @task
    def stage():
        time.sleep(60)

    def body(run_id):
        soon(lambda: set_state(run_id, state, force))
        stage()

    began = time.monotonic()
    ended, run_id = started(body)
    assert time.monotonic() - began < SECONDS
    assert isinstance(ended, CancelledRun)
    found = state_of(run_id)
    assert (found.type, found.message) == ("CANCELLED", CANCELLED)


def test_a_training_ends_behind_the_step_that_runs():
    done = []

    def body(run_id):
        soon(lambda: set_state(run_id, Cancelling()))
        with deferred_interrupts() as asked:
            while not asked:
                time.sleep(0.2)
                done.append("step")
            done.append("saved")
        done.append("went on")

    ended, run_id = started(body)
    assert isinstance(ended, CancelledRun)
    assert done[-1] == "saved"
    assert state_of(run_id).is_cancelled()


def test_a_cancel_is_no_failure_for_code_that_catches_failures():
    def body(run_id):
        soon(lambda: set_state(run_id, Cancelling()))
        while True:
            with contextlib.suppress(Exception):
                time.sleep(60)

    ended, run_id = started(body)
    assert isinstance(ended, CancelledRun)
    assert state_of(run_id).is_cancelled()


def test_the_question_before_registering_does_not_wait_for_the_watch(monkeypatch):
    monkeypatch.setattr(cancelling, "SECONDS_BETWEEN_LOOKS", 60)

    def body(run_id):
        time.sleep(0.3)  # the first look is over
        raise_if_cancelled()
        set_state(run_id, Cancelling())
        raise_if_cancelled()
        pytest.fail("it went on")

    ended, run_id = started(body)
    assert isinstance(ended, CancelledRun)
    assert state_of(run_id).is_cancelled()


def test_a_cancel_behind_the_last_call_leaves_a_completed_run(engine):
    def body(run_id):
        last_call()
        set_state(run_id, Cancelling())
        time.sleep(0.5)
        raise_if_cancelled()
        return "result"

    assert started(body)[0] == "result"
    _, run_id = started(body)
    assert state_of(run_id).is_completed()
    assert mark_dead_runs(engine) == []


def test_a_late_cancel_of_a_run_that_registers_nothing_is_heeded(monkeypatch):
    monkeypatch.setattr(cancelling, "SECONDS_BETWEEN_LOOKS", 60)

    def body(run_id):
        time.sleep(0.3)
        set_state(run_id, Cancelling())

    ended, run_id = started(body)
    assert isinstance(ended, CancelledRun)
    assert state_of(run_id).is_cancelled()


def test_a_run_that_was_called_crashed_while_it_worked_ends_completed():
    def body(run_id):
        set_state(run_id, Crashed(message="missing heartbeats"))

    ended, run_id = started(body)
    assert ended is None
    assert state_of(run_id).is_completed()


def test_a_failure_stays_a_failure():
    def body(run_id):
        raise ValueError("the model is broken")

    ended, run_id = started(body)
    assert isinstance(ended, ValueError)
    assert state_of(run_id).is_failed()


def test_a_server_that_does_not_answer_ends_no_run_but_nothing_registers(monkeypatch):
    heard = []
    monkeypatch.setattr(cancelling.log, "warning", lambda text, *rest: heard.append(text))
    monkeypatch.setattr(
        cancelling, "sync_client", lambda: SyncPrefectClient("http://127.0.0.1:9/api")
    )

    def body(run_id):
        time.sleep(0.5)
        with pytest.raises(ServerError, match=r"must say whether .* \(ConnectError\); .* are kept"):
            raise_if_cancelled()
        return "result"

    ended, run_id = started(body)
    assert ended == "result"
    assert state_of(run_id).is_completed()
    assert heard == [  # once, not at every look
        "the Prefect server cannot be asked for a cancel: %r",
        "the Prefect server does not say what state this run is in: %r",
    ]


def test_the_page_has_our_lines_where_prefect_was_not_told_of_our_loggers(monkeypatch):
    for name in OUR_LOGGERS:  # as in the process of a worker's run
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)

    def body(run_id):
        for name in OUR_LOGGERS:
            logging.getLogger(f"{name}.tested").info("a line of %s", name)

    _, run_id = started(body)
    _send_what_is_queued()
    chosen = LogFilter(flow_run_id={"any_": [run_id]})
    with get_client(sync_client=True) as client:
        lines = [(one.name, one.message) for one in client.read_logs(chosen)]
    for name in OUR_LOGGERS:
        assert lines.count((f"{name}.tested", f"a line of {name}")) == 1


def test_a_run_without_a_command_has_a_log_file_and_a_few_lines_on_the_terminal(engine, capsys):
    def body(run_id):
        logging.getLogger("flows.tested").info("a line of many")
        logging.getLogger("flows.tested").warning("worth a look")
        raise ValueError("the model is broken")

    propagated = logging.getLogger("flows").propagate
    started(body, "heard")
    (file,) = (engine / "logs").glob("*-heard-*.log")
    text = file.read_text()
    assert "a line of many" in text
    assert "Traceback" in text
    shown = capsys.readouterr().err
    assert f"started; log: {file}" in shown
    assert "worth a look" in shown
    assert "ended: ValueError: the model is broken" in shown
    assert "a line of many" not in shown
    assert logging.getLogger("flows").propagate is propagated
