"""Runs a command that cannot outlive the process that asked for it.

Started by `flows.commands.serving`.

For programs of others that start processes of their own, such as `mlflow server`. When the process
that asked ends, however it ends, the whole process group of the command is ended. As in
`tasks.server.api_child` there are two watches: the kernel's signal when the thread that started us
ends (Linux), and a pipe whose other end only that process holds.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG = 1
SECONDS_TO_STOP = 5


def main() -> int:
    """Run the command until it ends, we are told to stop, or the parent is gone."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--alive", type=int, required=True, help="pipe that closes with the parent")
    parser.add_argument("--parent", type=int, required=True, help="pid of the parent")
    parser.add_argument("--main-thread", action="store_true", help="started by its main thread")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    os.set_inheritable(options.alive, False)
    if options.main_thread:
        _end_with_parent_thread()
    if os.getppid() != options.parent:  # it died before the line above
        return 1
    command = subprocess.Popen(options.command, process_group=0, preexec_fn=_end_with_parent_thread)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, args=(options.alive,), daemon=True).start()
    try:
        return command.wait()
    finally:
        _end_group(command)


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the end of it all
    sys.exit(0)


def _end_with_parent_thread() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)  # returns when the last writer, the parent, closes its end
    os.kill(os.getpid(), signal.SIGTERM)


def _end_group(command: subprocess.Popen[bytes]) -> None:
    """End the command and everything it started, gently first."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(command.pid, signal.SIGTERM)
        end = time.monotonic() + SECONDS_TO_STOP
        while time.monotonic() < end:
            command.poll()
            os.killpg(command.pid, 0)  # raises once nobody is left
            time.sleep(0.05)
        os.killpg(command.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
