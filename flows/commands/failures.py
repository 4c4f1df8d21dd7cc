"""How a command ends: its exit code, one sentence for the person, the details in a log file."""

import contextlib
import errno
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from normtweak_core.errors import ForeseenError, InputError
from tasks.engine.environment import HOME_VARIABLE
from tasks.engine.log_files import log_file, traceback_text
from tasks.server.ending import RESUME, Terminated, end_within, ended_by, told

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT = 0, 1, 2
# What takes less memory when it is lower, by command.
LESS_MEMORY = {
    "quantize": "calibration.samples or calibration.length",
    "ablate": "calibration.samples or calibration.length",
    "ternary": "ternary.batch or ternary.data.length",
    "finetune": "finetune.batch, finetune.data.samples or finetune.data.length",
    "evaluate": "--length",
    "compare": "--length",
}


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into `Terminated`, so that a run is told to its server before the process ends.

    Prefect puts its own handler in front of this one while a flow runs, and calls it afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated


def exit_code(error: BaseException, command: str, log: Path | None = None) -> int:
    """Tell on standard error how a command failed, and return its exit code.

    Args:
        error: What ended it.
        command: Its name, for the log file.
        log: The log it has written so far, if any; the traceback is added there.
    """
    if (end := ended_by(error)) is not None:
        # A Ctrl-C that passed through exec() of a text, which is how dataclasses are made, leaves
        # CPython set to end by the signal instead of the code; the next exec() clears that.
        exec("")
        say(end[1])
        end_within(*end)
        told()
        return end[0]
    if isinstance(error, InputError):
        say(error.sentence)
        return EXIT_BAD_INPUT
    message = failure(error, command)
    log = _with_traceback(log or log_file(command), error)
    if message is None:
        kind = type(error).__name__
        detail = str(error).strip().partition("\n")[0]
        where = "no log of it could be written" if log is None else f"the traceback is in {log}"
        say(f"an unexpected {kind} ended the run ({detail[:200]}); {where}.")
    else:
        where = "No log could be written" if log is None else f"The log is {log}"
        say(f"{message.rstrip('.')}. {where}.")
    return EXIT_FAILED


def _with_traceback(log: Path, error: BaseException) -> Path | None:
    """Add a traceback to a log; return where it is, None where no disk has room for it."""
    for place in (log, Path(tempfile.gettempdir()) / f"normtweak-{log.name}"):
        with contextlib.suppress(OSError):
            with place.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(traceback_text(error))
            return place
    return None


def failure(error: BaseException, command: str = "quantize") -> str | None:
    """Return the sentence for a failure that is foreseen, and None for one that is not."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        fewer = f"lower {LESS_MEMORY[command]}, or " if command in LESS_MEMORY else ""
        return f"memory ran out; {fewer}use a machine with more (`normtweak plan` estimates it)"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = error.filename or os.environ.get(HOME_VARIABLE) or "the state root"
        return f"the disk of {place} is full; make room and run the same command again: {RESUME}"
    return error.summary if isinstance(error, ForeseenError) else None


def say(sentence: str) -> None:
    """Write one line to standard error, under the name of the program."""
    print(f"normtweak: {' '.join(sentence.split())}", file=sys.stderr)  # noqa: T201
