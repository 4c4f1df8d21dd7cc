import os
import signal
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals of a dying parent: Linux")

# A parent that starts the guard as flows.commands.serving does, and says who is who.
PARENT = """
import os, subprocess, sys, time
alive, ours = os.pipe()
guard = subprocess.Popen(
    [sys.executable, "-P", "-m", "tasks.server.guarded_child", f"--alive={alive}",
     f"--parent={os.getpid()}", *sys.argv[2:]],
    pass_fds=(alive,), start_new_session=True)
os.close(alive)
print("guard", guard.pid, flush=True)
if sys.argv[1] == "wait":
    sys.exit(guard.wait())
time.sleep(60)
"""

# A command that starts a process of its own, as `mlflow server` does, and ignores SIGTERM if told.
COMMAND = """
import os, signal, subprocess, sys, time
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen(["sleep", "60"])
print("command", os.getpid(), "grandchild", grandchild.pid, flush=True)
time.sleep(60)
"""


def started(program, kind="mild", thread=("--main-thread",)) -> tuple:
    parent = program("-c", PARENT, "stay", *thread, sys.executable, "-c", COMMAND, kind)
    parent.until(lambda: "guard" in parent.text() and "grandchild" in parent.text())
    words = parent.text().split()
    pids = [int(words[words.index(name) + 1]) for name in ("guard", "command", "grandchild")]
    return parent, [psutil.Process(pid) for pid in pids]


def ends_within(processes: list[psutil.Process], seconds: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


@pytest.mark.parametrize("thread", [("--main-thread",), ()], ids=["both watches", "pipe alone"])
def test_a_killed_parent_takes_the_command_and_its_children_along(program, thread):
    parent, processes = started(program, thread=thread)
    assert all(process.is_running() for process in processes)
    parent.process.kill()
    assert ends_within(processes, 5)


def test_a_command_that_does_not_listen_is_killed_after_some_seconds(program):
    parent, processes = started(program, kind="deaf")
    parent.process.kill()
    assert ends_within(processes, 12)


def test_sigterm_ends_the_guard_and_all_below_it_even_when_it_is_sent_twice(program):
    parent, processes = started(program)
    for _ in range(2):
        os.kill(processes[0].pid, signal.SIGTERM)
        time.sleep(0.05)
    assert ends_within(processes[1:], 5)
    parent.process.kill()


def test_the_exit_code_of_a_command_that_ends_is_passed_on(program):
    parent = program("-c", PARENT, "wait", sys.executable, "-c", "raise SystemExit(7)")
    assert parent.process.wait(30) == 7


def test_a_guard_whose_parent_is_gone_already_starts_nothing(program):
    guard = program(
        "-m",
        "tasks.server.guarded_child",
        "--alive=0",
        "--parent=1",
        sys.executable,
        "-c",
        "print('ran')",
    )
    assert guard.process.wait(30) == 1
    assert "ran" not in guard.text()
