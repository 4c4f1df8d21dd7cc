"""The stages of a ternary training: surgery, training by segments, export."""

import functools
import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prefect import task
from pydantic import BaseModel

from normtweak_core.export.config import ExportConfig
from normtweak_core.export.payload import payload_files
from normtweak_core.ternary.config import TernaryConfig
from tasks import events
from tasks.artifacts import NOT_CONTENT, ArtifactRef, content_hash, publish, publish_json
from tasks.environment import state_root
from tasks.job import STAGE, Job, torch_dtype
from tasks.results import CalibrationResult, ExportResult

if TYPE_CHECKING:
    from normtweak_core.ternary.surgery import SurgeryPlan
    from normtweak_core.training.checkpoint import TrainingState
    from normtweak_core.training.trainer import Progress as Advance
    from normtweak_core.training.trainer import Trainer

log = logging.getLogger(__name__)

FOLDER = "artifacts/training"  # checkpoints, by what the training starts from
SEGMENTS = 10  # parts of a training that show on the page, each a stage
CALIBRATED = 8  # windows that surgery looks at, and as many others to measure the jump on
SURGERY_SOURCES = [
    "normtweak_core.calibration.storage",
    "normtweak_core.model.loading",
    "normtweak_core.ternary.jump",
]
TRAINING_SOURCES = [*SURGERY_SOURCES, "normtweak_core.training.trainer"]
EXPORT_SOURCES = [
    *SURGERY_SOURCES,
    "normtweak_core.export.writer",
    "normtweak_core.ternary.finished",
]
NOT_READ = {"data", "save_every"}  # the data is known by its hash; the other changes no byte


class SurgeryResult(BaseModel, frozen=True):
    """Where norms are inserted, and how the loss moves."""

    plan: ArtifactRef
    losses: dict[str, float]  # nats per token, see `surgery_losses`


class SegmentResult(BaseModel, frozen=True):
    """A training after some of its steps; the last segment holds the weights."""

    until: int
    state_sha256: str
    losses: list[float]  # of all steps so far
    weights: ArtifactRef | None
    seconds: Annotated[float, NOT_CONTENT]  # of all steps so far


def surgery_key(job: Job, data: CalibrationResult, config: TernaryConfig) -> str:
    """Return the key of the surgery."""
    read = config.model_dump(include={"norm", "affine", "share_gains", "ramp_norm"})
    inputs = {"ternary": read, "model": job.fingerprint.sha256}
    parents = [data.windows.sha256]
    return job.key("surgery", parents=parents, inputs=inputs, sources=SURGERY_SOURCES)


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
    windows = _windows(data).to(job.device)
    model = load_causal_lm(job.folder, torch_dtype("float32"), job.device)
    plan = plan_surgery(model, windows[:CALIBRATED])
    losses = surgery_losses(model, plan, config, windows[-CALIBRATED:])
    for name in plan.unused:
        log.warning("linear %s is reached by no forward pass and stays float", name)
    return SurgeryResult(
        plan=publish_json("surgery", key, plan.model_dump(mode="json")), losses=losses
    )


def training_origin(
    job: Job, data: CalibrationResult, surgery: SurgeryResult, config: TernaryConfig
) -> str:
    """Return the hash of all that decides the steps of a training."""
    inputs = {
        "ternary": config.model_dump(exclude=NOT_READ),
        "model": job.fingerprint.sha256,
        "seed": job.seed,
    }
    parents = [data.windows.sha256, content_hash(surgery)]
    key = job.key("training", parents=parents, inputs=inputs, sources=TRAINING_SOURCES)
    return key.rpartition("-")[2]


def segment_ends(steps: int) -> list[int]:
    """Return the step after which each segment ends; fewer segments where there are few steps."""
    count = min(SEGMENTS, steps)
    return [steps * (i + 1) // count for i in range(count)]


def segment_key(origin: str, until: int) -> str:
    """Return the key of the segment that ends after step ``until``."""
    return f"train-{hashlib.sha256(f'{origin} {until}'.encode()).hexdigest()}"


class Training:
    """One training in memory, made when its first missing segment is asked for."""

    def __init__(
        self,
        job: Job,
        data: CalibrationResult,
        surgery: SurgeryResult,
        config: TernaryConfig,
    ):
        """Note what is to be trained; nothing is loaded yet."""
        self.job, self.data, self.surgery, self.config = job, data, surgery, config
        self.origin = training_origin(job, data, surgery, config)

    @property
    def folder(self) -> Path:
        """Folder of its checkpoints."""
        return state_root() / FOLDER / self.origin[:32]

    def run(self, until: int, advance: "Advance") -> "TrainingState":
        """Train up to a step, from the newest checkpoint on.

        Raises:
            NonFiniteError: The loss became NaN or infinite.
        """
        return self._trainer.run(until, advance)

    @functools.cached_property
    def _trainer(self) -> "Trainer":
        from normtweak_core.model.loading import load_causal_lm
        from normtweak_core.ternary.schedule import lambdas
        from normtweak_core.ternary.surgery import apply_surgery, set_lambdas
        from normtweak_core.training.objective import Objective
        from normtweak_core.training.rates import Rates
        from normtweak_core.training.trainer import Trainer, TrainingSetup

        config, job, plan = self.config, self.job, read_plan(self.surgery)
        model = load_causal_lm(job.folder, torch_dtype("float32"), job.device)
        apply_surgery(model, plan, config)
        if config.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        objective = Objective(
            config.objective, config.kd_weight or 0.5, config.temperature, config.hidden_weight
        )
        teacher = None
        if objective.needs_teacher:
            teacher = load_causal_lm(job.folder, torch_dtype(job.model.dtype), job.device)
        setup = TrainingSetup(
            steps=config.steps,
            batch=config.batch,
            rates=Rates(config.steps, config.lr, config.lr_second, config.weight_decay),
            objective=objective,
            clip=config.clip,
            accumulate=config.accumulate,
            save_every=config.save_every,
            seed=job.seed,
        )
        return Trainer(
            model,
            teacher,
            _windows(self.data),
            setup,
            self.folder,
            self.origin,
            lambda model, step: set_lambdas(
                model, lambdas(config, step, len(plan.blocks)), config.ramp_norm
            ),
        )


@task(task_run_name="train-{until}", **STAGE)
def train_stage(key: str, until: int, training: Any, advance: Any) -> SegmentResult:
    """Return the training after ``until`` steps; the last segment publishes the weights.

    Raises:
        NonFiniteError: Loss or gradient became NaN or infinite.
    """
    from safetensors.torch import save_file

    events.record("train", part="begin", until=until)

    def step(done: int, steps: int, loss: float, speed: float) -> None:
        events.record("step", step=done)
        advance(done, steps, loss, speed)

    state = training.run(until, step)
    weights = None
    if until == training.config.steps:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.weights.items()}
        weights = publish(
            "ternary",
            key,
            lambda path: save_file(tensors, path, metadata={"format": "pt"}),
            "safetensors",
        )
    return SegmentResult(
        until=until,
        state_sha256=state.sha256(),
        losses=state.losses,
        weights=weights,
        seconds=state.seconds,
    )


def ternary_export_key(
    job: Job, trained: SegmentResult, config: ExportConfig, export_dtype: str
) -> str:
    """Return the key of the export of a trained model."""
    inputs = {
        "export": config,
        "export_dtype": export_dtype,
        "model": job.fingerprint.sha256,
        "tokenizer": job.tokenizer_sha256,
        "generation": job.generation_sha256,
    }
    return job.key("export", parents=[content_hash(trained)], inputs=inputs, sources=EXPORT_SOURCES)


@task(task_run_name="export", **STAGE)
def ternary_export_stage(
    key: str,
    config: ExportConfig,
    export_dtype: str,
    ternary: TernaryConfig,
    job: Any,
    surgery: Any,
    trained: Any,
    details: Any,
) -> ExportResult:
    """Return the export folder of a ternary model.

    Raises:
        InputError: A tensor does not fit the float type.
        NonFiniteError: A tensor is NaN or infinite.
    """
    from safetensors.torch import load_file

    from normtweak_core.export.writer import write_ternary_export
    from normtweak_core.model.loading import load_causal_lm
    from normtweak_core.ternary.finished import FinishedLayers, other_tensors
    from normtweak_core.ternary.surgery import apply_surgery

    events.record("export", part="begin")
    plan, dtype = read_plan(surgery), torch_dtype(export_dtype)
    model = load_causal_lm(job.folder, torch_dtype("float32"), "cpu")
    apply_surgery(model, plan, ternary)
    weights = load_file(state_root() / trained.weights.path)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(weights[name])
    name = job.source.name.rstrip("/").rpartition("/")[2].replace(":", "-")
    out = state_root() / "exports" / f"{name}-ternary-{key.rpartition('-')[2][:12]}"
    record = write_ternary_export(
        out,
        job.folder,
        FinishedLayers(model, dtype),
        other_tensors(model),
        config,
        rms_norm_eps=plan.eps,
        dtype=dtype,
        details=details,
    )
    events.record("export", part="written")
    return ExportResult(
        folder=out.relative_to(state_root()).as_posix(),
        export_sha256=record.payload_sha256,
        files=[ArtifactRef.to(path) for path in payload_files(out)],
        manifest=ArtifactRef.to(out / "normtweak.json"),
        probe=ArtifactRef.to(out / "verify" / "probe.safetensors"),
        bits_per_weight=record.bits_per_weight,
        size_bytes=record.size_bytes,
    )


def read_plan(surgery: SurgeryResult) -> "SurgeryPlan":
    """Return the plan that a surgery stage has published."""
    from normtweak_core.ternary.surgery import SurgeryPlan

    text = (state_root() / surgery.plan.path).read_text(encoding="utf-8")
    return SurgeryPlan.model_validate(json.loads(text))


def _windows(data: CalibrationResult) -> Any:
    from normtweak_core.calibration.storage import load_calibration_set

    return load_calibration_set(state_root() / data.windows.path).input_ids
