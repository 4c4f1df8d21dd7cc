"""A training in the process that does it, and what is kept of a segment of it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tasks.engine.artifacts import NOT_CONTENT, ArtifactRef, Result, publish_tensors
from tasks.engine.environment import state_root
from tasks.results import CalibrationResult
from tasks.stages.calibrate import data_windows

if TYPE_CHECKING:
    from normtweak_core.training.checkpoint import TrainingState
    from normtweak_core.training.processes import Processes
    from normtweak_core.training.trainer import Trainer

FOLDER = "artifacts/training"  # checkpoints, by what the training starts from
SEGMENTS = 10  # parts of a training
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
    make: "Callable[[Training], Trainer]"  # other processes are given it, so it is no closure
    device: str  # of the first process
    processes: int = 1

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
        """What trains, in a process that does; made when it is first asked for."""
        return self.make(self)

    @functools.cached_property
    def windows(self) -> tuple[Any, Any]:
        """The windows that are trained on, and those that only measure: the last eighth of all."""
        windows, training = data_windows(self.data), trained_on(self.data)
        return training, windows[len(training) :][:HELD_OUT]


def trained_on(data: CalibrationResult) -> Any:
    """Return the windows of a data set that are trained on: all but the last eighth."""
    windows = data_windows(data)
    return windows[: -max(1, len(windows) // 8)]


def finished_segment(
    training: Training, state: "TrainingState", key: str, kind: str, processes: "Processes"
) -> SegmentResult:
    """Return what a training has come to; where several processes share it, all ask for it.

    Args:
        training: What is trained.
        state: Where it stands.
        key: Of the stage.
        kind: Folder of the weights under artifacts/.
        processes: Those that share it; the first one publishes the weights at the end.
    """
    weights = None
    if state.step == training.steps:
        best = state.best.whole(processes)
        weights = publish_tensors(kind, key, best) if processes.is_first else None
    return SegmentResult(
        until=state.step,
        state_sha256=state.sha256(),
        losses=state.losses,
        held_out={step: one.objective for step, one in state.held_out.items()},
        nll={step: one.nll for step, one in state.held_out.items()},
        best=state.best.step,
        weights=weights,
        seconds=state.seconds,
    )
