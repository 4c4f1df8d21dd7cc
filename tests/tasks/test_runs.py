import os
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tasks.engine.events import read_events
from tests.tasks.conftest import Program, wait_until

# Whichever test comes first also pays for the tables of Prefect's database.
pytestmark = pytest.mark.timeout(300)

FLOW = ("-m", "tests.tasks.flow_under_test")
ENDED = {"Completed", "Cached", "Failed", "Crashed", "Cancelled"}


@pytest.fixture
def start_flow(program, engine):
    """A function that starts the flow under test; `embedded`: with a server of its own."""

    def start(*arguments: object, embedded: bool = False) -> Program:
        own = {"PREFECT_API_URL": "", "PYTHONUNBUFFERED": "1"} if embedded else {}
        return program(*FLOW, str(engine), *(str(each) for each in arguments), **own)

    return start


def executed_by(*programs: Program) -> Counter:
    pids = {one.process.pid for one in programs}
    return Counter(
        event["stage"]
        for event in read_events()
        if event["event"] == "executed" and event["pid"] in pids
    )


def flow_run_of(one: Program) -> str:
    return next(e["flow_run"] for e in read_events() if e["pid"] == one.process.pid)


def states(root: Path, flow_run: str) -> tuple[str, Counter]:
    """The state of the flow run and the states of its task runs, as the database has them."""
    with sqlite3.connect(f"file:{root}/prefect/prefect.db?mode=ro", uri=True) as database:
        ((state,),) = database.execute(
            "select state_name from flow_run where id = ?", (flow_run,)
        ).fetchall()
        tasks = database.execute(
            "select name, state_name from task_run where flow_run_id = ?", (flow_run,)
        ).fetchall()
    return state, Counter(
        (name if name in ("first", "second", "third") else "burst", each) for name, each in tasks
    )


def test_a_killed_run_takes_its_server_with_it_is_marked_and_resumed(start_flow, engine):
    from tasks.engine.runs import mark_dead_runs

    killed = start_flow("--start", 300, "--pause", "second", embedded=True)
    killed.until(lambda: executed_by(killed)["second"])
    run = flow_run_of(killed)
    (server,) = psutil.Process(killed.process.pid).children(recursive=True)
    assert mark_dead_runs(engine) == []  # it lives
    # What a process has not sent yet dies with it; wait, so that the records below are certain.
    known = Counter({("first", "Completed"): 1, ("second", "Running"): 1})
    killed.until(lambda: states(engine, run)[1] == known)
    killed.process.kill()
    killed.process.wait()
    wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, 10)
    assert states(engine, run)[0] == "Running"

    assert mark_dead_runs(engine) == [run]
    assert mark_dead_runs(engine) == []
    assert states(engine, run) == (
        "Crashed",
        Counter({("first", "Completed"): 1, ("second", "Crashed"): 1}),
    )

    again = start_flow("--start", 300, "--burst", 150, embedded=True)
    text = again.finish()
    assert "values 300 301 302" in text
    assert "torch imported False" in text
    assert "rror" not in text  # nothing was sent to a server that was gone
    assert executed_by(again) == Counter({"second": 1, "third": 1})
    assert states(engine, flow_run_of(again)) == (
        "Completed",
        # Every record of the burst was written before the server of this run was stopped.
        Counter(
            {
                ("first", "Cached"): 1,
                ("second", "Completed"): 1,
                ("third", "Completed"): 1,
                ("burst", "Completed"): 150,
            }
        ),
    )


def test_two_runs_at_once_execute_each_stage_once(start_flow):
    both = [start_flow("--start", 400, "--seconds", 0.5) for _ in range(2)]
    for one in both:
        assert "values 400 401 402" in one.finish()
    assert executed_by(*both) == Counter({"first": 1, "second": 1, "third": 1})


def test_ctrl_c_ends_the_run_with_its_own_server_still_there_to_hear_it(start_flow, engine):
    one = start_flow("--start", 500, "--pause", "second", embedded=True)
    one.until(lambda: executed_by(one)["second"])
    (server,) = psutil.Process(one.process.pid).children(recursive=True)
    assert os.getpgid(server.pid) != os.getpgid(one.process.pid)  # a terminal signals the group
    one.process.send_signal(signal.SIGINT)
    assert one.process.wait(30) != 0
    assert not server.is_running()
    state, tasks = states(engine, flow_run_of(one))
    assert state in ("Crashed", "Cancelled")
    assert {name for _, name in tasks} <= ENDED


def test_sigterm_ends_the_run_in_a_final_state(start_flow, engine):
    from tasks.engine.runs import mark_dead_runs

    one = start_flow("--start", 600, "--pause", "first")
    one.until(lambda: executed_by(one)["first"])
    one.process.terminate()
    assert one.process.wait(30) != 0
    run = flow_run_of(one)
    wait_until(lambda: {name for _, name in states(engine, run)[1]} <= ENDED)
    assert states(engine, run)[0] in ("Crashed", "Cancelled")
    assert mark_dead_runs(engine) == []  # it had told the server itself


def test_a_run_that_prefect_started_is_owned_from_inside(engine):
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling, Running

    from tasks.engine.locks import create_locked
    from tasks.engine.runs import mark_dead_runs, own_run

    @flow
    def scheduled():
        pass

    with get_client(sync_client=True) as client:
        runs = [client.create_flow_run(scheduled, state=Running()) for _ in range(2)]
        own_run(engine, runs[0].id)
        dead = create_locked(engine / "locks" / "runs" / f"{runs[1].id}.lock")
        assert mark_dead_runs(engine) == []
        os.close(dead)  # what the kernel does when the process is killed
        assert mark_dead_runs(engine) == [str(runs[1].id)]
        assert client.read_flow_run(runs[0].id).state.name == "Running"
        state = client.read_flow_run(runs[1].id).state
        assert mark_when_dead(engine, client, scheduled, Cancelling()).name == "Cancelled"
    assert state.name == "Crashed"
    assert state.message == (
        "The process of this run was killed; its finished stages are kept and not repeated."
    )


def mark_when_dead(engine, client, flow, state):
    """The state of a run after its owner died in the given one."""
    from tasks.engine.locks import create_locked
    from tasks.engine.runs import mark_dead_runs

    run = client.create_flow_run(flow, state=state)
    os.close(create_locked(engine / "locks" / "runs" / f"{run.id}.lock"))
    mark_dead_runs(engine)
    return client.read_flow_run(run.id).state


def test_a_run_that_ends_while_it_is_marked_stays_completed(engine, monkeypatch):
    from prefect import flow
    from prefect.client.orchestration import SyncPrefectClient, get_client
    from prefect.states import Completed, Running

    @flow
    def scheduled():
        pass

    read = SyncPrefectClient.read_flow_runs

    def late(self, **chosen):
        found = read(self, **chosen)
        for run in found:  # what it had sent arrives between our two requests
            self.set_flow_run_state(run.id, Completed())
        return found

    monkeypatch.setattr(SyncPrefectClient, "read_flow_runs", late)
    with get_client(sync_client=True) as client:
        assert mark_when_dead(engine, client, scheduled, Running()).name == "Completed"


ORPHAN = """
import subprocess, sys, time
from pathlib import Path
from tasks.server.cancelling import serving
with serving(Path(sys.argv[1])):
    run = subprocess.Popen([sys.executable, "-m", "tests.tasks.flow_under_test", *sys.argv[1:]])
    print("child", run.pid, flush=True)
    time.sleep(300)
"""


def test_a_run_ends_with_the_service_that_started_it(program, engine):
    service = program("-c", ORPHAN, str(engine), "--start", "700", "--pause", "second")

    def executed() -> list:
        return [e for e in read_events() if e["event"] == "executed" and e["pid"] == run.pid]

    service.until(lambda: "child" in service.text())
    run = psutil.Process(int(service.text().split()[1]))
    service.until(lambda: len(executed()) == 2)
    service.process.kill()
    service.process.wait()
    run.wait(12)
    flow_run = executed()[0]["flow_run"]
    wait_until(lambda: states(engine, flow_run)[0] == "Crashed")


def test_a_lock_never_seen_before_is_no_run_of_ours(engine):
    from tasks.engine.runs import mark_dead_runs

    leftover = engine / "locks" / "runs" / "owner-000000000000.lock"
    leftover.touch()
    started = time.time()
    assert mark_dead_runs(engine) == []
    assert not leftover.exists()
    assert [e for e in read_events() if e["event"] == "marked_dead" and e["time"] > started] == []
