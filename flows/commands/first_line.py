"""The first line of a command: there within two seconds, before anything heavy is imported."""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator

from tasks.engine.log_files import TERMINAL, line_format

# Checks take a tenth of it; a model that is fetched from the hub, or hashed, takes as long as it is
# large.
PATIENCE = 1.0  # seconds


def tell(line: str) -> None:
    """Write a line to standard error as the log does, which is not set up yet."""
    record = logging.LogRecord(__name__, logging.INFO, "", 0, line, None, None)
    print(line_format(*TERMINAL).format(record), file=sys.stderr, flush=True)  # noqa: T201


@contextlib.contextmanager
def first_line(line: str) -> Iterator[None]:
    """Tell what begins when the checks inside have passed, or while they still take their time.

    A mistake that they find at once is answered by its one sentence alone.
    """
    lock, told = threading.Lock(), []

    def once() -> None:
        with lock:
            if not told:
                told.append(line)
                tell(line)

    timer = threading.Timer(PATIENCE, once)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    once()
