"""A training that several processes share, as its stage sees it: orders go out, steps come back.

All of them are child processes, this one only watches: what one of them waits for inside of torch
may never come, and nothing is heard meanwhile.
"""

import contextlib
import itertools
import json
import os
import pickle
import time
from collections.abc import Callable

from normtweak_core import errors
from normtweak_core.lazy import lazy
from normtweak_core.training.interrupt import deferred_interrupts
from tasks.server.ranks import RankError, RankProcesses
from tasks.stages.training.rank import (
    DONE,
    FAILED,
    NAMESPACE,
    ORDER,
    STEP,
    STOP,
)
from tasks.stages.training.training import SegmentResult, Training

distributed = lazy("torch.distributed")
shared_memory = lazy("normtweak_core.distributed.shared_memory")

MODULE = "tasks.stages.training.rank"
SECONDS_BETWEEN_LOOKS = 0.05

Step = Callable[[int, int, float, float], None]  # takes steps done, steps, loss, tokens/s


class SharedTraining:
    """The processes of one training, from its first missing segment to its last."""

    def __init__(self, training: Training):
        """Start them; they load the model and wait for an order."""
        size = training.processes
        place = shared_memory.shared_file()
        with os.fdopen(place, "wb") as file:  # theirs once they have started
            file.write(pickle.dumps(training))
            file.flush()
            arguments = [f"--training={place}"]
            self._others = RankProcesses(MODULE, arguments, range(size), size, (place,))
        self._store = distributed.PrefixStore(NAMESPACE, self._others.store)
        self._numbers = itertools.count()
        self._heard = 0  # steps

    def segment(self, until: int, key: str, kind: str, step: Step) -> SegmentResult:
        """Return the training after ``until`` steps, as `run_segment`, which see.

        A Ctrl-C ends the training after the running step; that step is saved first.

        Raises:
            NonFiniteError: Loss or gradient became NaN or infinite.
            RankError: A process has ended.
        """
        number = next(self._numbers)
        self._store.set(f"{ORDER}{number}", json.dumps([until, key, kind]))
        with deferred_interrupts() as asked:
            while not asked and not self._store.check([f"{DONE}{number}"]):
                self._hear(step)
                self._look()
                time.sleep(SECONDS_BETWEEN_LOOKS)
            if asked:
                self._save()
            self._hear(step)
        return SegmentResult.model_validate_json(self._store.get(f"{DONE}{number}"))

    def end(self) -> None:
        """End the processes."""
        self._others.stop()

    def _hear(self, step: Step) -> None:
        """Tell of every step since the last one."""
        while self._store.check([f"{STEP}{self._heard}"]):
            step(*json.loads(self._store.get(f"{STEP}{self._heard}")))
            self._store.delete_key(f"{STEP}{self._heard}")
            self._heard += 1

    def _look(self) -> None:
        """Return if the processes go on."""
        try:
            self._others.check()
        finally:
            if self._store.check([FAILED]):
                kind, text = json.loads(self._store.get(FAILED))
                raise getattr(errors, kind, errors.ForeseenError)(text)

    def _save(self) -> None:
        """Return when the processes have saved the running step and ended; the next signal ends us.

        Where none has run yet, there is nothing to save.
        """
        if self._heard:
            self._store.set(STOP, "")
            with contextlib.suppress(RankError):  # one ends by the signal that it passes on
                self._others.wait()
