"""The training stages of a ternary model, each a segment that shows on the page."""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from normtweak_core.lazy import lazy
from normtweak_core.training.rates import Rates
from tasks.engine.environment import state_root
from tasks.engine.stage import Found, stage
from tasks.models.job import torch_dtype
from tasks.models.work import Work
from tasks.stages.training.gptq_start import StartResult
from tasks.stages.training.segments import Shown, num_sharing, run_segment, shown
from tasks.stages.training.surgery import SurgeryResult, read_plan
from tasks.stages.training.teacher import teacher_of
from tasks.stages.training.training import SegmentResult, Training, segment_ends

if TYPE_CHECKING:
    from normtweak_core.training.objective import HeldOut
    from normtweak_core.training.trainer import Trainer

loading = lazy("normtweak_core.model.loading")
objectives = lazy("normtweak_core.training.objective")
processes = lazy("normtweak_core.training.processes")
recompute = lazy("normtweak_core.training.recompute")
safetensors = lazy("safetensors.torch")
schedule = lazy("normtweak_core.ternary.schedule")
starts = lazy("normtweak_core.ternary.gptq_start")
surgeries = lazy("normtweak_core.ternary.surgery")
trainers = lazy("normtweak_core.training.trainer")

# The data is known by its hash; the others change no byte.
NOT_READ = {"data", "save_every", "gradient_checkpointing"}


def _reads(work: Work, found: Found, until: int | None) -> dict[str, Any]:
    return {
        "ternary": work.recipe.ternary.model_dump(exclude=NOT_READ),
        "model": work.job.fingerprint.sha256,
        "seed": work.job.seed,
        "processes": num_sharing(work, "ternary"),  # sums come in another order
        "until": until,
    }


def _training(work: Work, found: Found, keys: Sequence[str]) -> AbstractContextManager[Shown]:
    plain = Work(work.recipe, work.job, work.data)  # other processes are given it
    start = found.get("gptq start", [])
    make = functools.partial(_trainer, plain, found["surgery"], start)
    return shown(work, found, keys, train, "ternary", make)


def _trainer(
    work: Work, surgery: SurgeryResult, start: list[StartResult], training: Training
) -> "Trainer":
    """Return what trains the model after its surgery, lambda rising to 1."""
    config, job, plan = work.recipe.ternary, work.job, read_plan(surgery)
    here = processes.Processes.here()
    place = here.loads_on(job.device)
    model = loading.load_causal_lm(job.folder, torch_dtype("float32"), place)
    surgeries.apply_surgery(model, plan, config)
    for block, done in zip(surgeries.trained_blocks(model), start, strict=bool(start)):
        starts.put_latents(block, safetensors.load_file(state_root() / done.weights.path))
    if config.gradient_checkpointing:
        recompute.recompute_blocks(surgeries.trained_blocks(model), surgeries.forget_inputs)
    objective = objectives.Objective(
        config.objective, config.kd_weight or 0.5, config.temperature, config.hidden_weight
    )
    teacher = None
    if objective.needs_teacher:
        teacher = teacher_of(job, model, here)
    names = [name for name, _ in model.named_parameters()]
    setup = trainers.TrainingSetup(
        steps=config.steps,
        batch=config.batch,
        rates=Rates(config.steps, config.peak, config.lr_second, config.weight_decay),
        objective=objective,
        clip=config.clip,
        accumulate=config.accumulate,
        save_every=config.save_every,
        seed=job.seed,
        ratios=dict.fromkeys(names, starts.mean_scale(model)) if config.relative else {},
        dtype=config.dtype,
        measured=training.measured,
    )
    blocks, (trained_on, held_out) = len(plan.blocks), training.windows

    def set_schedule(model: Any, step: int) -> None:
        lambdas = schedule.lambdas(config, step, blocks)
        surgeries.set_lambdas(model, lambdas, config.ramp_norm)

    def measure() -> "HeldOut":
        # All blocks ternary, whatever the schedule: that is what is exported.
        surgeries.set_lambdas(model, [1.0] * blocks, config.ramp_norm)
        return objectives.held_out_losses(model, teacher, held_out, objective)

    return trainers.Trainer(
        model,
        teacher,
        trained_on,
        setup,
        training.folder,
        training.origin,
        set_schedule,
        measure,
        here.device(job.device),
    )


@stage(
    "training",
    needs=("data", "surgery", "gptq start"),
    reads=_reads,
    parts=lambda work: segment_ends(work.recipe.ternary.steps),
    around=_training,
    label=lambda work, until: f"train {until}",
)
def train(key: str, part: int, shared: Any) -> SegmentResult:
    """Return the training after ``part`` steps; the last segment publishes the weights.

    Raises:
        NonFiniteError: Loss or gradient became NaN or infinite.
    """
    return run_segment(shared, key, part, "ternary")
