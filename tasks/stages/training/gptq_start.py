"""The stage that a ternary training starts from, block by block: where GPTQ puts the weights."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from normtweak_core.lazy import lazy
from normtweak_core.ternary.config import START_WINDOWS
from tasks.engine import events
from tasks.engine.artifacts import ArtifactRef, Result, publish_tensors
from tasks.engine.environment import state_root
from tasks.engine.stage import Found, stage
from tasks.models.job import torch_dtype
from tasks.models.work import Work
from tasks.results import CalibrationResult
from tasks.stages.training.surgery import READ, SurgeryResult, read_plan
from tasks.stages.training.training import trained_on

if TYPE_CHECKING:
    from normtweak_core.ternary.gptq_start import GptqStart

loading = lazy("normtweak_core.model.loading")
safetensors = lazy("safetensors.torch")
starts = lazy("normtweak_core.ternary.gptq_start")
surgeries = lazy("normtweak_core.ternary.surgery")


class StartResult(Result, frozen=True):
    """The latent weights of one block."""

    block: int
    weights: ArtifactRef


def _reads(work: Work, found: Found, index: int) -> dict[str, Any]:
    read = READ - {"ramp_norm"} | {"activation_bits"}
    return {
        "block": index,
        "ternary": work.recipe.ternary.model_dump(include=read),
        "model": work.job.fingerprint.sha256,
    }


class _Walk:
    """The walk through the blocks, begun when the first that is not there yet is asked for."""

    def __init__(self, work: Work, data: CalibrationResult, surgery: SurgeryResult):
        self._given = work, data, surgery
        self._start: GptqStart | None = None

    def behind(self, before: list[StartResult]) -> "GptqStart":
        """Return the walk behind the blocks that are done."""
        if self._start is None:
            work, data, surgery = self._given
            job, plan = work.job, read_plan(surgery)
            model = loading.load_causal_lm(job.folder, torch_dtype("float32"), job.device)
            surgeries.apply_surgery(model, plan, work.recipe.ternary)
            windows = trained_on(data)[:START_WINDOWS]
            self._start = starts.GptqStart(model, plan, job.folder, windows, job.device)
        for one in before[self._start.done :]:
            self._start.put(safetensors.load_file(state_root() / one.weights.path))
        return self._start


@contextlib.contextmanager
def _walk(work: Work, found: Found, keys: Sequence[str]) -> Iterator[_Walk]:
    yield _Walk(work, found["data"], found["surgery"])


@stage(
    "gptq start",
    title="start from GPTQ",
    needs=("data", "surgery"),
    parts=lambda work: range(work.job.blocks[1]),
    chained=True,
    reads=_reads,
    when=lambda work: work.recipe.ternary.start == "gptq",
    around=_walk,
    label=lambda work, index: f"start {index}",
    unit="blocks",
)
def gptq_start(key: str, part: int, before: list[StartResult], shared: Any) -> StartResult:
    """Return the latent weights that a block starts from.

    Raises:
        HessianError: A Hessian cannot be factorized.
        NonFiniteError: Activations are not finite.
    """
    events.record("gptq start", block=part, part="begin")
    return StartResult(
        block=part, weights=publish_tensors("gptq-start", key, shared.behind(before).solve())
    )
