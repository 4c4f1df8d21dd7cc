"""Keep a run within the limits of its recipe: what it may hold, and how many threads compute."""

import contextlib
import os
import sys
from collections.abc import Iterator

from flows.recipes.limits import LimitsConfig
from normtweak_core.memory import limited

THREADS = "OMP_NUM_THREADS"


@contextlib.contextmanager
def within(limits: LimitsConfig) -> Iterator[None]:
    """Take no more memory and threads than a recipe allows while the context lasts.

    Processes that are started in it, such as the reader of an export, have as many threads.
    """
    with limited(limits.memory), _threads(limits.threads):
        yield


@contextlib.contextmanager
def _threads(most: int | None) -> Iterator[None]:
    before = os.environ.get(THREADS)
    if most is not None:
        _use(str(most))
    try:
        yield
    finally:
        if most is not None:
            _use(before)


def _use(threads: str | None) -> None:
    if not threads:
        os.environ.pop(THREADS, None)
        return
    os.environ[THREADS] = threads
    if "torch" in sys.modules:  # which reads the variable as it is imported
        sys.modules["torch"].set_num_threads(int(threads))
