"""Runs a command that cannot outlive the process that asked for it.

Started by `flows.commands.serving`.

For programs of others that start processes of their own, such as `mlflow server`. When the process
that asked ends, however it ends, the whole process group of the command is ended
(`tasks.server.watch`).
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import NoReturn

from tasks.server.watch import (
    end_with_parent_thread,
    require_parent,
    watch_arguments,
    watch_pipe,
)

SECONDS_TO_STOP = 5


def main() -> int:
    """Run the command until it ends, we are told to stop, or the parent is gone."""
    parser = watch_arguments(main.__doc__)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    require_parent(options)
    command = subprocess.Popen(options.command, process_group=0, preexec_fn=end_with_parent_thread)
    signal.signal(signal.SIGTERM, _leave)
    watch_pipe(options.alive)
    try:
        return command.wait()
    finally:
        _end_group(command)


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the end of it all
    sys.exit(0)


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
