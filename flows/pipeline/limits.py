"""Keep a run within the limits of its recipe: what it may hold, and how many threads compute."""

import contextlib
import os
import sys
from collections.abc import Iterator

from flows.recipes.limits import LimitsConfig
from normtweak_core.memory import hard_limit, limited, map_large_blocks

THREADS = "OMP_NUM_THREADS"


@contextlib.contextmanager
def within(limits: LimitsConfig) -> Iterator[None]:
    """Take no more memory and threads than a recipe allows while the context lasts.

    Where memory is limited, by the recipe or by the kernel, what is freed goes back at once.
    Processes that are started in it, such as the reader of an export, have as many threads.
    """
    if limits.memory is not None or hard_limit() is not None:
        map_large_blocks()
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
