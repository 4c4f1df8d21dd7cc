"""What a run would do: disk, memory, time, and which stages it would find finished."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.budget import (
    existing_folder,
    free_bytes,
    measured_speed,
    memory_bytes,
    readable_bytes,
    time_estimate,
)
from flows.params import Recipe
from flows.preflight import Ready
from normtweak_core.errors import InputError
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.hub import is_hub_id
from tasks.environment import default_variables

if TYPE_CHECKING:
    from tasks.job import Job


@dataclass(frozen=True)
class Stage:
    """Whether a stage, or how many of its parts, would be found finished."""

    name: str
    cached: int
    parts: int = 1

    def __str__(self) -> str:
        if self.parts == 1:
            return f"{self.name}: {'cached' if self.cached else 'will run'}"
        return f"{self.name}: {self.cached} of {self.parts} cached"


@contextlib.contextmanager
def scratch_environment(root: Path) -> Iterator[None]:
    """Set the variables of a run for the duration of a plan, after which the process ends.

    Prefect makes its home when it is imported, so that cannot be inside the state root.
    """
    with tempfile.TemporaryDirectory(prefix="normtweak-plan-") as scratch:
        os.environ["PREFECT_HOME"] = scratch
        for name, value in default_variables(root).items():
            os.environ.setdefault(name, value)
        yield


def plan_lines(recipe: Recipe, ready: Ready, root: Path) -> list[str]:
    """Return the plan of a run, line by line; reads finished stages and writes nothing."""
    from tasks.job import open_job

    stages = cached_stages(recipe, open_job(recipe.model, recipe.seed))
    return [
        *_model_lines(recipe, ready),
        *_disk_lines(ready, root),
        _memory_line(recipe, ready),
        *_time_lines(recipe, ready, stages),
        "stages",
        *(f"  {stage}" for stage in stages),
        "nothing was written",
    ]


def cached_stages(recipe: Recipe, job: "Job") -> list[Stage]:
    """Return the stages of a run in order; what depends on a stage that will run, will run too."""
    from flows.quantize import baseline_settings
    from tasks.caching import cached_result
    from tasks.calibrate import calibration_key, calibration_length
    from tasks.chain import ChainSettings
    from tasks.evaluating import evaluation_key, float_evaluation_key, text_of
    from tasks.exporting import export_key, verify_key
    from tasks.float_type import float_type_key
    from tasks.subjects import export_subject, float_subject
    from tasks.task_scoring import items_of, task_key
    from tasks.tune import final_tune_key

    count = job.blocks[1]
    calibration = cached_result(calibration_key(job, recipe.calibration))
    chosen = cached_result(float_type_key(job, recipe.export))
    blocks: list = []
    baseline: list = []
    tuned = export = verified = None
    if calibration and chosen:
        settings = ChainSettings(recipe.quantization, recipe.norm_tweak, chosen.dtype)
        blocks = _cached_blocks(job, calibration, settings)
        baseline = _cached_blocks(job, calibration, baseline_settings(settings))
    if len(blocks) == count and recipe.final_tune.enabled:
        tuned = cached_result(final_tune_key(job, calibration, blocks, settings, recipe.final_tune))
    if len(blocks) == count and (tuned or not recipe.final_tune.enabled):
        export = cached_result(export_key(job, blocks, tuned, settings, recipe.export))
    length = calibration_length(job, recipe.calibration)
    text = text_of(recipe.evaluation.perplexity, job.source, length, job.context)
    items = items_of(recipe.evaluation)
    measured = [float_evaluation_key(job, text)]
    measured += [task_key(float_subject(job), one) for one in items]
    if export:
        verified = cached_result(verify_key(job, export))
        measured += [evaluation_key(job, export, text)]
        measured += [task_key(export_subject(job, export), one) for one in items]
    stages = [
        Stage("calibrate", bool(calibration)),
        Stage("float type", bool(chosen)),
        Stage("blocks", len(blocks), count),
        Stage("baseline", len(baseline), count),
    ]
    stages += [Stage("final tune", bool(tuned))] if recipe.final_tune.enabled else []
    return [
        *stages,
        Stage("export", bool(export)),
        Stage("verify", bool(verified)),
        Stage("evaluate", sum(map(bool, map(cached_result, measured))), 2 + 2 * len(items)),
        Stage("register", 0),
    ]


def _cached_blocks(job: "Job", calibration: object, settings: object) -> list:
    """Return the finished blocks of a chain, up to the first that is missing."""
    from tasks.blocks import block_key
    from tasks.caching import cached_result

    finished: list = []
    for index in range(job.blocks[1]):
        parent = finished[-1] if finished else None
        block = cached_result(block_key(job, calibration, settings, index, parent))
        if block is None:
            break
        finished.append(block)
    return finished


def _model_lines(recipe: Recipe, ready: Ready) -> list[str]:
    shape, config = ready.shape, recipe.quantization
    group = f"groups of {config.group_size}" if config.group_size else "one scale a row"
    return [
        f"model   {ready.source.name}: {shape.num_blocks} blocks, {shape.parameters:,} parameters, "
        f"{shape.linear_weights:,} of them to {config.bits} bits ({config.method}, {group})",
        f"text    {recipe.calibration.samples} windows of {ready.length} tokens, "
        f"source {recipe.calibration.source}",
    ]


def _disk_lines(ready: Ready, root: Path) -> list[str]:
    total = readable_bytes(sum(ready.disk.values()))
    free = readable_bytes(free_bytes(existing_folder(root)))
    return [
        f"disk    at most {total} under {root}, {free} free",
        *(f"  {what}: {readable_bytes(size)}" for what, size in ready.disk.items()),
    ]


def _memory_line(recipe: Recipe, ready: Ready) -> str:
    import psutil

    stages = memory_bytes(recipe, ready.shape, ready.length)
    worst = max(stages, key=stages.__getitem__)
    available = psutil.virtual_memory().available
    warning = "; that may not be enough" if stages[worst] > available else ""
    return (
        f"memory  about {readable_bytes(stages[worst])} at its peak ({worst}), "
        f"{readable_bytes(available)} available{warning}"
    )


def _time_lines(recipe: Recipe, ready: Ready, stages: list[Stage]) -> list[str]:
    estimate = time_estimate(recipe, ready.shape, ready.length, measured_speed())
    open_share = {stage.name: 1 - stage.cached / stage.parts for stage in stages}
    left = {name: s * open_share.get(name, 1.0) for name, s in estimate.seconds.items()}
    speed = estimate.multiply_adds_per_second / 1e9
    return [
        f"time    about {readable_seconds(sum(left.values()))} for what is not cached, of "
        f"{readable_seconds(sum(estimate.seconds.values()))}; counted multiply-adds at 35 % of "
        f"the {speed:.0f} billion per second that a matrix product reaches here now, on the CPU, "
        "plus 25 s: right within a factor of about three",
        *(f"  {name}: {readable_seconds(seconds)}" for name, seconds in left.items()),
    ]


def readable_seconds(seconds: float) -> str:
    """Return a duration such as ``3 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def require_local_model(config: ModelConfig) -> None:
    """Accept a model that is on this machine; a plan fetches nothing.

    Raises:
        InputError: It is a hub model that is not in the local cache.
    """
    if Path(config.source).expanduser().exists() or not is_hub_id(config.source):
        return
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(
        try_to_load_from_cache(config.source, "config.json", revision=config.revision), str
    ):
        raise InputError(
            f"a plan writes nothing, so the model must be here; {config.source} is not in the hub "
            f"cache: run `hf download {config.source}` first."
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
