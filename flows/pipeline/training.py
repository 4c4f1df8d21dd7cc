"""What every flow that trains does with its training: segments as stages, shown while they run."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from flows.pipeline.run import Run, calibration_set
from flows.pipeline.run_record import source_tags
from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.errors import keys_called
from tasks.engine.caching import cached_result
from tasks.results import CalibrationResult
from tasks.stages.training.segments import SegmentResult, Training, segment_ends, segment_key


def training_data(run: Run, config: CalibrationConfig, section: str) -> CalibrationResult:
    """Return the text to train on.

    Args:
        run: The run.
        config: What text.
        section: What the recipe calls it.
    """
    with keys_called({"calibration": section}):
        return calibration_set(run, config, "data")


@dataclass(frozen=True)
class Shown:
    """What the pages of Prefect and MLflow say about a training."""

    name: str  # of the recipe
    params: dict[str, Any]
    step_values: Callable[[int], dict[str, float]]  # by steps done before; rates and schedules


def train(
    run: Run, training: Training, task: Callable[..., SegmentResult], shown: Shown
) -> list[SegmentResult]:
    """Return the segments, each a stage of its own; the last one holds the weights.

    Args:
        run: The run.
        training: What is trained.
        task: Carries out a segment.
        shown: What is told about it.
    """
    ends = segment_ends(training.steps)
    keys = [segment_key(training.origin, until) for until in ends]
    everything_cached = all(cached_result(key) is not None for key in keys)
    with ExitStack() as stack:
        advance: Callable[..., None] = lambda *_: None  # noqa: E731 - replaced where work is left
        if not everything_cached:
            advance = stack.enter_context(_shown(run, training, shown))
        segments = [
            run.stage(f"train {until}", key, task, until=until, training=training, advance=advance)
            for until, key in zip(ends, keys, strict=True)
        ]
    shutil.rmtree(training.folder, ignore_errors=True)  # every segment has its record
    return segments


def training_facts(
    segments: list[SegmentResult], tokens: int, held_out: dict[int, float]
) -> dict[str, Any]:
    """Return what ``--result`` tells of a training.

    Args:
        segments: All.
        tokens: Trained on.
        held_out: Loss of held-out windows, by step.
    """
    return {
        "steps": segments[-1].until,
        "tokens": tokens,
        "seconds": segments[-1].seconds,
        "held_out": {str(step): loss for step, loss in held_out.items()},
        "best_step": segments[-1].best,
    }


@contextmanager
def _shown(run: Run, training: Training, shown: Shown) -> Iterator[Callable[..., None]]:
    """Show a training while it runs: on the terminal, on Prefect's page, in MLflow."""
    from tasks.registry.tracking import TrainingRun

    # The curves of the registered training are there; a rebuild must not be written into them.
    curves: Any = nullcontext()
    if not run.is_rebuild:
        params = {"model": run.job.source.name} | shown.params
        curves = TrainingRun(shown.name, training.origin, params, source_tags())
    with curves as tracked, run.progress.stage("training", "steps") as bar:

        def advance(done: int, steps: int, loss: float, speed: float) -> None:
            bar(done, steps, f"loss {loss:.4f}, {speed:,.0f} tokens/s")
            if tracked is not None:
                tracked.log(done, {"train/loss": loss, **shown.step_values(done - 1)})

        yield advance
