"""What work costs a process of its own: peak memory, wall seconds and CPU seconds.

Peak memory has to be measured in a fresh process, because an allocator keeps what earlier work
freed. The peak can be set back on Linux only.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.results import REPOSITORY

CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): reset the peak resident set size to what is resident now


@dataclass(frozen=True)
class Cost:
    """What one process took, its descendants included."""

    seconds: float
    cpu_seconds: float
    output: str  # its standard output


def rss_bytes() -> int:
    """Return what of this process is in memory now."""
    return psutil.Process().memory_info().rss


def reset_peak() -> None:
    """Forget the peak so far."""
    CLEAR.write_text(RESET_PEAK)


def fresh_process(module: str, arguments: list[str], environment: dict[str, str]) -> Cost:
    """Run ``python -m module`` in the repository and return what it cost.

    Raises:
        CalledProcessError: It failed; it has told why on standard error.
    """
    command = [sys.executable, "-m", module, *arguments]
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=os.environ | environment, stdout=subprocess.PIPE, text=True
    )
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(seconds, usage.ru_utime + usage.ru_stime, output)


def last_line(cost: Cost) -> Any:
    """Return the JSON value that a child of ours printed last."""
    return json.loads(cost.output.splitlines()[-1])
