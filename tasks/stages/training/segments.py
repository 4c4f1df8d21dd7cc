"""A training in segments: each ends in a checkpoint, a measurement and a cached result.

It runs in this process, or in several others (`tasks.stages.training.shared`).
"""

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normtweak_core.lazy import lazy
from normtweak_core.model.source import num_processes
from normtweak_core.training.batches import shared_by
from tasks.engine import events
from tasks.engine.caching import cached_result
from tasks.engine.stage import Found, Stage
from tasks.models.work import Work
from tasks.stages.training.training import SegmentResult, Training, finished_segment

if TYPE_CHECKING:
    from normtweak_core.training.trainer import Trainer
    from tasks.stages.training.shared import SharedTraining

processes_of = lazy("normtweak_core.training.processes")
shared_trainings = lazy("tasks.stages.training.shared")

SECONDS_BETWEEN_EVENTS = 60.0


@dataclass
class Shown:
    """A training that a stage carries out, segment by segment."""

    training: Training
    advance: Callable[..., None] = lambda *_: None  # takes steps done, steps, loss, tokens/s

    @functools.cached_property
    def shared(self) -> "SharedTraining":
        """The processes that share it; started when they are first asked for."""
        return shared_trainings.SharedTraining(self.training)

    def end(self) -> None:
        """End the processes, if there are any."""
        if "shared" in vars(self):
            self.shared.end()


def num_sharing(work: Work, section: str) -> int:
    """Return how many processes share the training of a section of the recipe."""
    recipe, config = work.recipe, getattr(work.recipe, section)
    found = num_processes(recipe.devices, work.job.device, recipe.model.device)
    return shared_by(recipe.devices, found, config.batch, config.accumulate)


@contextlib.contextmanager
def shown(
    work: Work,
    found: Found,
    keys: Sequence[str],
    stage: Stage,
    section: str,
    make: "Callable[[Training], Trainer]",
) -> Iterator[Shown]:
    """Yield the training of a stage, shown while one of its segments is not there yet.

    Its checkpoints go when every segment has its record.
    """
    origin = stage.key(work, found, None).rpartition("-")[2]
    config = getattr(work.recipe, section)
    training = Training(
        origin, config.steps, found["data"], make, work.job.device, num_sharing(work, section)
    )
    one = Shown(training)
    with contextlib.ExitStack() as stack:
        stack.callback(one.end)
        if any(cached_result(key) is None for key in keys):
            one.advance = stack.enter_context(work.training_shown(training))
        yield one
    shutil.rmtree(training.folder, ignore_errors=True)


@contextlib.contextmanager
def _written_down() -> Iterator[Callable[[int], None]]:
    """Yield what is told of every step; they are written down by the span, and at the end."""
    first = last = 0
    written = time.monotonic()

    def write() -> None:
        nonlocal first, written
        if first:
            events.record("steps", first=first, last=last)
        first, written = 0, time.monotonic()

    def note(step: int) -> None:
        nonlocal first, last
        first, last = first or step, step
        if time.monotonic() - written > SECONDS_BETWEEN_EVENTS:
            write()

    try:
        yield note
    finally:
        write()


def run_segment(one: Shown, key: str, until: int, kind: str) -> SegmentResult:
    """Return a training after ``until`` steps; the last segment publishes the best weights.

    Args:
        one: What is trained.
        key: Of the stage.
        until: Optimizer steps.
        kind: Folder of the weights under artifacts/.

    Raises:
        NonFiniteError: Loss or gradient became NaN or infinite.
        RankError: A process that shares the training has ended.
    """
    training = one.training
    events.record("train", part="begin", until=until)

    with _written_down() as note:

        def step(done: int, steps: int, loss: float, speed: float) -> None:
            note(done)
            one.advance(done, steps, loss, speed)

        if training.processes > 1:
            return one.shared.segment(until, key, kind, step)
        state = training.trainer.run(until, step)
    return finished_segment(training, state, key, kind, processes_of.Processes())
