"""Ctrl-C in a training loop: end after the step that runs, so that it can be saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether somebody has asked the loop to end."""

    def __init__(self) -> None:
        """Nobody has."""
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextmanager
def deferred_interrupts() -> Iterator[Interrupt]:
    """Let the first Ctrl-C or SIGTERM act when the block ends, and a second one at once.

    Yields:
        What the loop looks at between two steps. Outside the main thread, where signals cannot be
        taken, it stays false.
    """
    asked = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {one: signal.getsignal(one) for one in SIGNALS}

    def restore() -> None:
        for one, handler in before.items():
            signal.signal(one, handler)

    def note(number: int, frame: FrameType | None) -> None:
        asked.number = number
        restore()

    for one in SIGNALS:
        signal.signal(one, note)
    try:
        yield asked
    finally:
        restore()
    if asked.number is not None:
        signal.raise_signal(asked.number)
