"""The training stages: a training in segments, each a stage that shows on the page."""

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prefect import task
from pydantic import BaseModel

from normtweak_core.ternary.config import TernaryConfig
from tasks import events
from tasks.artifacts import NOT_CONTENT, ArtifactRef, content_hash, publish
from tasks.environment import state_root
from tasks.job import STAGE, Job, torch_dtype
from tasks.results import CalibrationResult
from tasks.surgery import SurgeryResult, data_windows, read_plan

if TYPE_CHECKING:
    from normtweak_core.training.checkpoint import TrainingState
    from normtweak_core.training.trainer import Progress as Advance
    from normtweak_core.training.trainer import Trainer

FOLDER = "artifacts/training"  # checkpoints, by what the training starts from
SEGMENTS = 10  # parts of a training
HELD_OUT = 64  # windows at most that are measured on after each segment
SOURCES = [
    "normtweak_core.calibration.storage",
    "normtweak_core.model.loading",
    "normtweak_core.ternary.schedule",
    "normtweak_core.ternary.surgery",
    "normtweak_core.training.objective",
    "normtweak_core.training.trainer",
]
NOT_READ = {"data", "save_every"}  # the data is known by its hash; the other changes no byte


class SegmentResult(BaseModel, frozen=True):
    """A training after some of its steps; the last segment holds the weights."""

    until: int
    state_sha256: str
    losses: list[float]  # of all steps so far
    held_out: float  # nats per token of held-out windows, all blocks ternary
    weights: ArtifactRef | None
    seconds: Annotated[float, NOT_CONTENT]  # of all steps so far


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
    key = job.key("training", parents=parents, inputs=inputs, sources=SOURCES)
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

    def run(self, until: int, advance: "Advance") -> tuple["TrainingState", float]:
        """Train up to a step, from the newest checkpoint on; return the state and held-out loss.

        Raises:
            NonFiniteError: The loss became NaN or infinite.
        """
        from normtweak_core.ternary.surgery import set_lambdas
        from normtweak_core.training.objective import mean_loss

        state = self._trainer.run(until, advance)
        model, blocks = self._trainer.model, self.job.blocks[1]
        set_lambdas(model, [1.0] * blocks, self.config.ramp_norm)
        _, held_out = self._windows
        return state, mean_loss(model, held_out)

    @functools.cached_property
    def _windows(self) -> tuple[Any, Any]:
        """The windows that are trained on, and those that only measure: the last eighth of all."""
        windows = data_windows(self.data)
        kept = max(1, len(windows) // 8)
        return windows[:-kept], windows[-kept:][:HELD_OUT]

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
            self._windows[0],
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

    trained: Training = training
    state, held_out = trained.run(until, step)
    weights = None
    if until == trained.config.steps:
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
        held_out=held_out,
        weights=weights,
        seconds=state.seconds,
    )
