"""A training in segments: each ends in a checkpoint, a measurement and a cached result."""

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tasks.engine import events
from tasks.engine.artifacts import NOT_CONTENT, ArtifactRef, Result, publish_tensors
from tasks.engine.caching import cached_result
from tasks.engine.environment import state_root
from tasks.engine.stage import Found, Stage
from tasks.models.work import Work
from tasks.results import CalibrationResult
from tasks.stages.calibrate import data_windows

if TYPE_CHECKING:
    from normtweak_core.training.trainer import Trainer

FOLDER = "artifacts/training"  # checkpoints, by what the training starts from
SEGMENTS = 10  # parts of a training
SECONDS_BETWEEN_EVENTS = 60.0
HELD_OUT = 64  # windows at most that are measured on after each segment


class SegmentResult(Result, frozen=True):
    """A training after some of its steps; the last segment holds the weights."""

    until: int
    state_sha256: str
    losses: list[float]  # of all steps so far
    held_out: dict[int, float]  # the objective on windows that are not trained on, by steps done
    nll: dict[int, float]  # their negative log-likelihood, nats per token
    best: int  # steps after which that objective was lowest; 0: before the first one
    weights: ArtifactRef | None  # the best
    seconds: Annotated[float, NOT_CONTENT]  # of all steps so far


def segment_ends(steps: int) -> list[int]:
    """Return the step after which each segment ends; fewer segments where there are few steps."""
    count = min(SEGMENTS, steps)
    return [steps * (i + 1) // count for i in range(count)]


@dataclass
class Training:
    """One training in memory, made when its first missing segment is asked for."""

    origin: str  # hash of all that decides its steps
    steps: int
    data: CalibrationResult
    make: "Callable[[Training], Trainer]"
    advance: Callable[..., None] = lambda *_: None  # takes steps done, steps, loss, tokens/s

    @property
    def folder(self) -> Path:
        """Folder of its checkpoints."""
        return state_root() / FOLDER / self.origin[:32]

    @property
    def measured(self) -> list[int]:
        """Steps after which held-out windows are measured on."""
        return segment_ends(self.steps)

    @functools.cached_property
    def trainer(self) -> "Trainer":
        """What trains; made when it is first asked for."""
        return self.make(self)

    @functools.cached_property
    def windows(self) -> tuple[Any, Any]:
        """The windows that are trained on, and those that only measure: the last eighth of all."""
        windows = data_windows(self.data)
        kept = max(1, len(windows) // 8)
        return windows[:-kept], windows[-kept:][:HELD_OUT]


@contextlib.contextmanager
def shown(
    work: Work,
    found: Found,
    keys: Sequence[str],
    stage: Stage,
    steps: int,
    make: "Callable[[Training], Trainer]",
) -> Iterator[Training]:
    """Yield the training of a stage, shown while one of its segments is not there yet.

    Its checkpoints go when every segment has its record.
    """
    origin = stage.key(work, found, None).rpartition("-")[2]
    training = Training(origin, steps, found["data"], make)
    with contextlib.ExitStack() as stack:
        if any(cached_result(key) is None for key in keys):
            training.advance = stack.enter_context(work.training_shown(training))
        yield training
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


def run_segment(training: Training, key: str, until: int, kind: str) -> SegmentResult:
    """Return a training after ``until`` steps; the last segment publishes the best weights.

    Args:
        training: What is trained.
        key: Of the stage.
        until: Optimizer steps.
        kind: Folder of the weights under artifacts/.

    Raises:
        NonFiniteError: Loss or gradient became NaN or infinite.
    """
    events.record("train", part="begin", until=until)

    with _written_down() as note:

        def step(done: int, steps: int, loss: float, speed: float) -> None:
            note(done)
            training.advance(done, steps, loss, speed)

        state = training.trainer.run(until, step)
    weights = None
    if until == training.steps:
        weights = publish_tensors(kind, key, state.best.weights)
    return SegmentResult(
        until=until,
        state_sha256=state.sha256(),
        losses=state.losses,
        held_out={step: one.objective for step, one in state.held_out.items()},
        nll={step: one.nll for step, one in state.held_out.items()},
        best=state.best.step,
        weights=weights,
        seconds=state.seconds,
    )
