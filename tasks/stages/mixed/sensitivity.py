"""The stage of what widths cost, block by block."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from normtweak_core.lazy import lazy
from normtweak_core.quantization.config import MixedBits
from normtweak_core.widths.report import GroupCost
from tasks.engine import events
from tasks.engine.artifacts import publish_json
from tasks.engine.live_page import show_bar
from tasks.engine.stage import Found, stage
from tasks.models.job import torch_dtype
from tasks.models.work import Work
from tasks.results import SensitivityResult
from tasks.stages.blocks import all_blocks, fields_read
from tasks.stages.calibrate import data_windows

if TYPE_CHECKING:
    from normtweak_core.widths.measuring import Measuring

measuring = lazy("normtweak_core.widths.measuring")
streaming = lazy("normtweak_core.model.streaming")
walks = lazy("normtweak_core.quantization.walk")


def is_mixed(work: Work) -> bool:
    """Whether the recipe leaves the widths to a budget."""
    return isinstance(work.recipe.quantization.bits, MixedBits)


def _reads_sensitivity(work: Work, found: Found, part: int) -> dict[str, Any]:
    config = work.recipe.quantization
    return {
        "block": part,
        "widths": config.widths,
        "quantization": fields_read(config.on_trial, work.job),
        "model": work.job.fingerprint.sha256,
    }


@contextlib.contextmanager
def _measuring(work: Work, found: Found, keys: Sequence[str]) -> Iterator["_Lazily"]:
    yield _Lazily(work, found)


class _Lazily:
    """Opens the model with the first block that is not cached."""

    def __init__(self, work: Work, found: Found):
        self._work, self._found = work, found
        self._opened: Measuring | None = None

    def block(self, index: int) -> list[GroupCost]:
        if self._opened is None:
            job = self._work.job
            model = streaming.StreamedModel(job.folder, torch_dtype(job.model.dtype), job.device)
            walk = walks.BlockWalk(model, data_windows(self._found["calibrate"]))
            dtype = torch_dtype(self._found["float type"].dtype)
            self._opened = measuring.Measuring(walk, self._work.recipe.quantization, dtype)
        return self._opened.block(index)


@stage(
    "sensitivity",
    needs=("calibrate", "float type"),
    parts=all_blocks,
    reads=_reads_sensitivity,
    when=is_mixed,
    around=_measuring,
    label=lambda work, index: f"{work.name}sensitivity of block {index}",
    title="sensitivity",
    unit="blocks",
)
def sensitivity(key: str, work: Work, part: int, label: str, shared: Any) -> SensitivityResult:
    """Return what each group of a block costs at each width.

    Raises:
        HessianError: A Hessian cannot be factorized.
        NonFiniteError: Activations or logits are not finite.
    """
    began = time.monotonic()
    events.record("sensitivity", block=part)
    count = work.job.blocks[1]
    show_bar("sensitivity", part, count, f"{label}, {part + 1} of {count}")
    costs = [one.model_dump(mode="json") for one in shared.block(part)]
    show_bar("sensitivity", part + 1, count, f"{label}: done")
    return SensitivityResult(
        block=part,
        costs=publish_json("sensitivity", key, costs),
        seconds=time.monotonic() - began,
    )
