"""The stages of what widths cost: all of them tried, and each measured, block by block."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normtweak_core.lazy import lazy
from normtweak_core.quantization.config import MixedBits
from tasks.engine import events
from tasks.engine.artifacts import publish, publish_json
from tasks.engine.environment import state_root
from tasks.engine.live_page import show_bar
from tasks.engine.stage import Found, stage
from tasks.models.job import torch_dtype
from tasks.models.work import Work
from tasks.results import SensitivityResult, TrialResult
from tasks.stages.blocks import all_blocks, fields_read
from tasks.stages.calibrate import data_windows

if TYPE_CHECKING:
    from normtweak_core.quantization.walk import BlockWalk
    from normtweak_core.widths.measuring import Measuring
    from normtweak_core.widths.trial import GroupTrial, Trials

measuring = lazy("normtweak_core.widths.measuring")
trial = lazy("normtweak_core.widths.trial")
streaming = lazy("normtweak_core.model.streaming")
walks = lazy("normtweak_core.quantization.walk")


def is_mixed(work: Work) -> bool:
    """Whether the recipe leaves the widths to a budget."""
    return isinstance(work.recipe.quantization.bits, MixedBits)


def _reads(work: Work, found: Found, part: int) -> dict[str, Any]:
    config = work.recipe.quantization
    return {
        "block": part,
        "widths": config.widths,
        "quantization": fields_read(config.on_trial, work.job),
        "model": work.job.fingerprint.sha256,
    }


def _walk(work: Work, found: Found) -> "BlockWalk":
    job = work.job
    model = streaming.StreamedModel(job.folder, torch_dtype(job.model.dtype), job.device)
    return walks.BlockWalk(model, data_windows(found["calibrate"]))


@contextlib.contextmanager
def _opened(work: Work, found: Found, keys: Sequence[str]) -> "Iterator[Callable[[], Trials]]":
    """Yield what opens the model, with the first block that is not cached."""
    config, dtype = work.recipe.quantization, torch_dtype(found["float type"].dtype)
    yield functools.cache(lambda: trial.Trials(_walk(work, found), config, dtype))


@contextlib.contextmanager
def _measured(work: Work, found: Found, keys: Sequence[str]) -> "Iterator[Callable[[], Measuring]]":
    def trials(index: int) -> "list[GroupTrial]":
        path = state_root() / found["trial"][index].weights.path
        return trial.load_trials(path, work.recipe.quantization)

    yield functools.cache(lambda: measuring.Measuring(_walk(work, found), trials))


@stage(
    "trial",
    needs=("calibrate", "float type"),
    parts=all_blocks,
    reads=_reads,
    when=is_mixed,
    around=_opened,
    label=lambda work, index: f"{work.name}trial of block {index}",
    title="trial",
    unit="blocks",
)
def trial_widths(key: str, work: Work, part: int, label: str, shared: Any) -> TrialResult:
    """Return the linears of a block at each width.

    Raises:
        HessianError: A Hessian cannot be factorized.
        NonFiniteError: Activations are not finite.
    """
    with _shown("trial", work, part, label):
        groups = shared().block(part)

    def write(path: Path) -> None:
        trial.save_trials(path, groups)

    return TrialResult(block=part, weights=publish("trial", key, write, "safetensors"))


@stage(
    "sensitivity",
    needs=("calibrate", "trial"),
    parts=all_blocks,
    reads=_reads,
    when=is_mixed,
    around=_measured,
    label=lambda work, index: f"{work.name}sensitivity of block {index}",
    title="sensitivity",
    unit="blocks",
)
def sensitivity(key: str, work: Work, part: int, label: str, shared: Any) -> SensitivityResult:
    """Return what each group of a block costs at each width.

    Raises:
        NonFiniteError: Activations or logits are not finite.
    """
    with _shown("sensitivity", work, part, label):
        costs = [one.model_dump(mode="json") for one in shared().block(part)]
    return SensitivityResult(block=part, costs=publish_json("sensitivity", key, costs))


@contextlib.contextmanager
def _shown(what: str, work: Work, part: int, label: str) -> Iterator[None]:
    events.record(what, block=part)
    count = work.job.blocks[1]
    show_bar(what, part, count, f"{label}, {part + 1} of {count}")
    yield
    show_bar(what, part + 1, count, f"{label}: done")
