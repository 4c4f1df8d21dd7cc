"""What has ended a process from outside, and that it does end: some seconds later at the latest.

An interruption is an exception that Python raises between any two instructions of the main thread.
Where the thread has just taken the lock of a queue (`threading.Condition.__enter__`, Python 3.11),
the lock stays taken, and what waits for the queue waits for ever: Prefect's workers, for one, which
are flushed at the exit of the interpreter without a time limit. So a process that is a command, and
has nothing to do once its run is over, ends by itself.
"""

import os
import signal
import sys
import threading
import time

SECONDS_TO_END = 30.0
EXIT_INTERRUPTED, EXIT_TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
CANCELLED = "CancelledRun"  # Prefect's, by name: it may not be imported
RESUME = "finished stages are kept, and the same command goes on from there."
INTERRUPTION = (EXIT_INTERRUPTED, f"interrupted; {RESUME}")
TERMINATION = (EXIT_TERMINATED, f"ended by SIGTERM; {RESUME}")
CANCEL = (EXIT_INTERRUPTED, f"cancelled on Prefect's page or with its command; {RESUME}")

_is_command = threading.Event()
_untold: list[str] = []  # the sentence that nobody has been told yet
_begun = threading.Event()


class Terminated(BaseException):
    """SIGTERM arrived. No `Exception`, so that nothing on the way mistakes it for a failure."""


def ended_by(error: BaseException) -> tuple[int, str] | None:
    """Return exit code and sentence, if something from outside is behind an error.

    What is raised while it passes comes of it: Python 3.11 makes a RuntimeError of whatever arrives
    while a class gets its attributes, and a connection that was in use fails to say good-bye.
    """
    found: BaseException | None = error
    while found is not None:
        name = type(found).__name__
        if isinstance(found, KeyboardInterrupt):
            return INTERRUPTION
        if name in (CANCELLED, "RunCancelled"):
            return CANCEL
        if isinstance(found, Terminated) or name == "TerminationSignal":
            return TERMINATION
        found = found.__cause__ or found.__context__
    return None


def process_is_a_command() -> None:
    """Say that this process ends with its run; in a notebook or a test it goes on."""
    _is_command.set()


def end_within(code: int, sentence: str, seconds: float = SECONDS_TO_END) -> None:
    """Let a command end with a code, whatever it still waits for when the time is up.

    Args:
        code: Its exit code.
        sentence: What is then said, unless `told` was called by then.
        seconds: How long it may take by itself.
    """
    if _begun.is_set() or not _is_command.is_set():
        return
    _begun.set()
    _untold[:] = [sentence]
    threading.Thread(target=_end, args=(code, seconds), daemon=True).start()


def told() -> None:
    """Note that the person knows how the process ends."""
    _untold.clear()


def _end(code: int, seconds: float) -> None:
    time.sleep(seconds)
    for sentence in _untold:
        print(f"normtweak: {sentence}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(code)
