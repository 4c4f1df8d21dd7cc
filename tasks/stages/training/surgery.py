"""The surgery stage: where norms are inserted, and how far that alone moves the loss."""

import logging
from typing import TYPE_CHECKING, Any

from normtweak_core.lazy import lazy
from tasks.engine import events
from tasks.engine.artifacts import ArtifactRef, Result, publish_json, read_json
from tasks.engine.stage import Found, stage
from tasks.models.job import torch_dtype
from tasks.models.work import Work
from tasks.results import CalibrationResult
from tasks.stages.calibrate import data_windows

if TYPE_CHECKING:
    from normtweak_core.ternary.surgery import SurgeryPlan

jump = lazy("normtweak_core.ternary.jump")
loading = lazy("normtweak_core.model.loading")
surgeries = lazy("normtweak_core.ternary.surgery")

log = logging.getLogger(__name__)

CALIBRATED = 8  # windows that surgery looks at, and as many others to measure the jump on
READ = {"norm", "affine", "share_gains", "ramp_norm"}


class SurgeryResult(Result, frozen=True):
    """Where norms are inserted, and how the loss moves."""

    plan: ArtifactRef
    losses: dict[str, float]  # nats per token, see `surgery_losses`


def _reads(work: Work, found: Found, part: None) -> dict[str, Any]:
    return {
        "ternary": work.recipe.ternary.model_dump(include=READ),
        "model": work.job.fingerprint.sha256,
    }


@stage("surgery", needs=("data",), reads=_reads)
def surgery(key: str, work: Work, data: CalibrationResult) -> SurgeryResult:
    """Return where norms are inserted, and the loss before, between and after the cuts.

    Raises:
        InputError: The model's linears cannot be replaced.
    """
    events.record("surgery", part="begin")
    job = work.job
    windows = data_windows(data).to(job.device)
    model = loading.load_causal_lm(job.folder, torch_dtype("float32"), job.device)
    plan = surgeries.plan_surgery(model, windows[:CALIBRATED])
    losses = jump.surgery_losses(model, plan, work.recipe.ternary, windows[-CALIBRATED:])
    for name in plan.unused:
        log.warning("linear %s is reached by no forward pass and stays float", name)
    return SurgeryResult(
        plan=publish_json("surgery", key, plan.model_dump(mode="json")), losses=losses
    )


def read_plan(done: SurgeryResult) -> "SurgeryPlan":
    """Return the plan that a surgery stage has published."""
    return surgeries.SurgeryPlan.model_validate(read_json(done.plan))
