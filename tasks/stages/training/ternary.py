"""The training stages of a ternary model, each a segment that shows on the page."""

from typing import TYPE_CHECKING, Any

from prefect import task

from normtweak_core.ternary.config import TernaryConfig
from tasks.engine.artifacts import content_hash
from tasks.models.job import STAGE, Job, torch_dtype
from tasks.results import CalibrationResult
from tasks.stages.training.segments import SegmentResult, Training, run_segment
from tasks.stages.training.surgery import SurgeryResult, data_windows, read_plan

if TYPE_CHECKING:
    from normtweak_core.training.trainer import Trainer

SOURCES = [
    __name__,
    "normtweak_core.calibration.storage",
    "normtweak_core.model.loading",
    "normtweak_core.ternary.schedule",
    "normtweak_core.ternary.surgery",
    "normtweak_core.training.objective",
    "normtweak_core.training.recompute",
    "normtweak_core.training.trainer",
]
# The data is known by its hash; the others change no byte.
NOT_READ = {"data", "save_every", "gradient_checkpointing"}


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


class TernaryTraining(Training):
    """A training in which lambda rises to 1."""

    def __init__(
        self,
        job: Job,
        data: CalibrationResult,
        surgery: SurgeryResult,
        config: TernaryConfig,
    ):
        """Note what is to be trained; nothing is loaded yet."""
        self.job, self.data, self.surgery, self.config = job, data, surgery, config
        self.origin, self.steps = training_origin(job, data, surgery, config), config.steps

    def windows_of_the_data(self) -> Any:
        """Return the token ids of all windows."""
        return data_windows(self.data)

    def make_trainer(self) -> "Trainer":
        """Return what trains the model after its surgery."""
        from normtweak_core.model.loading import load_causal_lm
        from normtweak_core.ternary.schedule import lambdas
        from normtweak_core.ternary.surgery import (
            apply_surgery,
            forget_inputs,
            set_lambdas,
            trained_blocks,
        )
        from normtweak_core.training.objective import HeldOut, Objective, held_out_losses
        from normtweak_core.training.rates import Rates
        from normtweak_core.training.recompute import recompute_blocks
        from normtweak_core.training.trainer import Trainer, TrainingSetup

        config, job, plan = self.config, self.job, read_plan(self.surgery)
        model = load_causal_lm(job.folder, torch_dtype("float32"), job.device)
        apply_surgery(model, plan, config)
        if config.gradient_checkpointing:
            recompute_blocks(trained_blocks(model), forget_inputs)
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
            dtype=config.dtype,
            measured=self.measured,
        )
        blocks, (trained_on, held_out) = len(plan.blocks), self.windows

        def measure() -> HeldOut:
            # All blocks ternary, whatever the schedule: that is what is exported.
            set_lambdas(model, [1.0] * blocks, config.ramp_norm)
            return held_out_losses(model, teacher, held_out, objective)

        return Trainer(
            model,
            teacher,
            trained_on,
            setup,
            self.folder,
            self.origin,
            lambda model, step: set_lambdas(model, lambdas(config, step, blocks), config.ramp_norm),
            measure,
        )


@task(task_run_name="train-{until}", **STAGE)
def train_stage(key: str, until: int, training: Any, advance: Any) -> SegmentResult:
    """Return the training after ``until`` steps; the last segment publishes the weights.

    Raises:
        NonFiniteError: Loss or gradient became NaN or infinite.
    """
    trained: TernaryTraining = training
    return run_segment(trained, key, until, advance, "ternary")
