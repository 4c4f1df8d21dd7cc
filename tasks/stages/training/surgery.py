"""The surgery stage: where norms are inserted, and how far that alone moves the loss."""

import json
import logging
from typing import TYPE_CHECKING, Any

from prefect import task

from normtweak_core.ternary.config import TernaryConfig
from tasks.engine import events
from tasks.engine.artifacts import ArtifactRef, Result, publish_json
from tasks.engine.environment import state_root
from tasks.models.job import STAGE, Job, torch_dtype
from tasks.results import CalibrationResult

if TYPE_CHECKING:
    from normtweak_core.ternary.surgery import SurgeryPlan

log = logging.getLogger(__name__)

CALIBRATED = 8  # windows that surgery looks at, and as many others to measure the jump on
SOURCES = [
    __name__,
    "normtweak_core.calibration.storage",
    "normtweak_core.model.loading",
    "normtweak_core.ternary.jump",
]


class SurgeryResult(Result, frozen=True):
    """Where norms are inserted, and how the loss moves."""

    plan: ArtifactRef
    losses: dict[str, float]  # nats per token, see `surgery_losses`


def surgery_key(job: Job, data: CalibrationResult, config: TernaryConfig) -> str:
    """Return the key of the surgery."""
    read = config.model_dump(include={"norm", "affine", "share_gains", "ramp_norm"})
    inputs = {"ternary": read, "model": job.fingerprint.sha256}
    parents = [data.windows.sha256]
    return job.key("surgery", parents=parents, inputs=inputs, sources=SOURCES)


@task(task_run_name="surgery", **STAGE)
def surgery_stage(key: str, config: TernaryConfig, job: Any, data: Any) -> SurgeryResult:
    """Return where norms are inserted, and the loss before, between and after the cuts.

    Raises:
        InputError: The model's linears cannot be replaced.
    """
    from normtweak_core.model.loading import load_causal_lm
    from normtweak_core.ternary.jump import surgery_losses
    from normtweak_core.ternary.surgery import plan_surgery

    events.record("surgery", part="begin")
    windows = data_windows(data).to(job.device)
    model = load_causal_lm(job.folder, torch_dtype("float32"), job.device)
    plan = plan_surgery(model, windows[:CALIBRATED])
    losses = surgery_losses(model, plan, config, windows[-CALIBRATED:])
    for name in plan.unused:
        log.warning("linear %s is reached by no forward pass and stays float", name)
    return SurgeryResult(
        plan=publish_json("surgery", key, plan.model_dump(mode="json")), losses=losses
    )


def read_plan(surgery: SurgeryResult) -> "SurgeryPlan":
    """Return the plan that a surgery stage has published."""
    from normtweak_core.ternary.surgery import SurgeryPlan

    text = (state_root() / surgery.plan.path).read_text(encoding="utf-8")
    return SurgeryPlan.model_validate(json.loads(text))


def data_windows(data: CalibrationResult) -> Any:
    """Return the token ids of a data stage."""
    from normtweak_core.calibration.storage import load_calibration_set

    return load_calibration_set(state_root() / data.windows.path).input_ids
