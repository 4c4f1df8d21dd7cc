"""The end-to-end training of a quantized model, and the export of what came of it."""

import dataclasses
import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from normtweak_core.finetune.config import FinetuneConfig
from normtweak_core.finetune.source import GRID
from normtweak_core.lazy import lazy
from normtweak_core.training.rates import Rates
from tasks.engine.environment import state_root
from tasks.engine.stage import Found, stage
from tasks.models.job import Job, torch_dtype
from tasks.models.starting_point import StartingPoint
from tasks.models.work import Work
from tasks.results import CalibrationResult, ExportResult, FloatType, RefusedExport
from tasks.stages.calibrate import data_windows
from tasks.stages.export import (
    details_of,
    folder_named_after,
    format_library,
    read_by_every_export,
    written,
)
from tasks.stages.retry import EXACT, another_float_type
from tasks.stages.training.finetune_blocks import TrainedBlockResult
from tasks.stages.training.segments import Shown, num_sharing, run_segment, shown
from tasks.stages.training.teacher import teacher_of
from tasks.stages.training.training import SegmentResult, Training, segment_ends

if TYPE_CHECKING:
    from normtweak_core.training.trainer import Trainer

finished = lazy("normtweak_core.finetune.finished")
grids = lazy("normtweak_core.finetune.model")
loading = lazy("normtweak_core.model.loading")
objectives = lazy("normtweak_core.training.objective")
processes = lazy("normtweak_core.training.processes")
recompute = lazy("normtweak_core.training.recompute")
safetensors = lazy("safetensors.torch")
structure = lazy("normtweak_core.model.structure")
trainers = lazy("normtweak_core.training.trainer")
writer = lazy("normtweak_core.export.writer")

# Known by their hashes, or without consequence for a byte.
NOT_READ = {"data", "save_every", "float_model", "gradient_checkpointing"}


def _reads(work: Work, found: Found, until: int | None) -> dict[str, Any]:
    return {
        "finetune": work.recipe.finetune.model_dump(exclude=NOT_READ),
        "model": work.job.fingerprint.sha256,
        "seed": work.job.seed,
        "levels": found["start"].source.levels,
        "processes": num_sharing(work, "finetune"),  # sums come in another order
        "until": until,
    }


def _training(work: Work, found: Found, keys: Sequence[str]) -> AbstractContextManager[Shown]:
    plain = Work(work.recipe, work.job, work.data)  # other processes are given it
    start = dataclasses.replace(found["start"])  # without the weights that it has read
    make = functools.partial(_trainer, plain, start, found.get("block", []))
    return shown(work, found, keys, finetune, "finetune", make)


def _trainer(
    work: Work, start: StartingPoint, blocks: list[TrainedBlockResult], training: Training
) -> "Trainer":
    """Return what trains the export, after its blocks were trained one by one."""
    config, job = work.recipe.finetune, work.job
    here = processes.Processes.here()
    place = here.loads_on(job.device)
    model = model_on_grids(job, start, blocks, config, place)
    if config.gradient_checkpointing:
        recompute.recompute_blocks(model.get_submodule(job.blocks[0]))
    peaks = grids.peak_rates(model, config)
    highest = max(peaks.values())
    objective = objectives.Objective("kd")
    setup = trainers.TrainingSetup(
        steps=config.steps,
        batch=config.batch,
        rates=Rates(config.steps, highest),
        objective=objective,
        clip=config.clip,
        accumulate=config.accumulate,
        save_every=config.save_every,
        seed=job.seed,
        ratios={name: peak / highest for name, peak in peaks.items()},
        dtype=config.dtype,
        measured=training.measured,
    )
    teacher = teacher_of(job, model, here)
    trained_on, held_out = training.windows
    return trainers.Trainer(
        model,
        teacher,
        trained_on,
        setup,
        training.folder,
        training.origin,
        measure=lambda: objectives.held_out_losses(model, teacher, held_out, objective),
        device=here.device(job.device),
    )


def model_on_grids(
    job: Job,
    start: StartingPoint,
    blocks: list[TrainedBlockResult],
    config: FinetuneConfig,
    device: str,
) -> Any:
    """Return the whole model of the export in float32, its blocks as far as they were trained."""
    model = loading.load_causal_lm(job.folder, torch_dtype("float32"), device)
    prefix = structure.find_blocks(model).prefix
    start.put_into(model, config, job.seed)
    for block in blocks:
        for name, value in safetensors.load_file(state_root() / block.state.path).items():
            model.get_parameter(f"{prefix}.{block.block}.{name}").data.copy_(value)
    return model


@stage(
    "training",
    needs=("data", "start", "block"),
    reads=_reads,
    parts=lambda work: segment_ends(work.recipe.finetune.steps),
    around=_training,
    label=lambda work, until: f"train {until}",
)
def finetune(key: str, part: int, shared: Any) -> SegmentResult:
    """Return the training after ``part`` steps; the last segment publishes the weights.

    Raises:
        NonFiniteError: Loss or gradient became NaN or infinite.
    """
    return run_segment(shared, key, part, "finetune")


def _reads_of_the_export(work: Work, found: Found, part: None) -> dict[str, Any]:
    return read_by_every_export(work) | {
        "levels": found["start"].source.levels,
        "library": format_library(work.recipe.export.format),
    }


# The trained scales are numbers of the first export's float type: only float32 holds them too.
@stage(
    "export",
    needs=("data", "start", "float type", "training"),
    reads=_reads_of_the_export,
    again=another_float_type(EXACT),
)
def export_finetuned(
    key: str,
    work: Work,
    data: CalibrationResult,
    start: StartingPoint,
    float_type: FloatType,
    training: list[SegmentResult],
) -> ExportResult | RefusedExport:
    """Return the export folder of a fine-tuned model.

    Raises:
        InputError: A tensor is missing.
        NonFiniteError: A tensor is NaN or infinite.
        VerificationError: The tokenizer was replaced while the job ran.
    """
    job, source = work.job, start.source
    model = model_on_grids(job, start, [], work.recipe.finetune, job.device)
    grids.load_trained(model, safetensors.load_file(state_root() / training[-1].weights.path))
    details = details_of(work, data, float_type)
    # Written as the main job's recipe names them, so that this export can be trained on as well.
    details["recipe"] |= {
        "quantization": source.quantization.model_dump(mode="json", include=set(GRID))
    }
    details["lineage"] |= {"parent_export_sha256": start.export.export_sha256}
    out = folder_named_after(job, f"{source.quantization.in_names}-finetuned", key)
    finished_grids = finished.FinishedGrids(model)
    return written(
        job,
        lambda: writer.write_export(
            out,
            job.folder,
            finished_grids,
            finished.other_tensors(model),
            work.recipe.export,
            dtype=torch_dtype(float_type.dtype),
            windows=data_windows(data),
            details=details,
            widths=finished_grids.widths,
        ),
    )
