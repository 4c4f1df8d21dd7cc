"""The end-to-end training of a quantized model, and the export of what came of it."""

from typing import TYPE_CHECKING, Any

from prefect import task

from normtweak_core.export.config import ExportConfig
from normtweak_core.finetune.config import FinetuneConfig
from tasks.engine import events
from tasks.engine.artifacts import content_hash
from tasks.engine.environment import state_root
from tasks.engine.provenance import RECORD_SOURCE, made_with
from tasks.models.job import STAGE, Job, torch_dtype
from tasks.models.starting_point import StartingPoint
from tasks.results import CalibrationResult, ExportResult, RefusedExport
from tasks.stages.export import format_library, named_after, written
from tasks.stages.training.finetune_blocks import TrainedBlockResult
from tasks.stages.training.segments import SegmentResult, Training, run_segment
from tasks.stages.training.surgery import data_windows

if TYPE_CHECKING:
    from normtweak_core.export.record import ExportRecord
    from normtweak_core.training.trainer import Trainer

SOURCES = [
    __name__,
    "normtweak_core.calibration.storage",
    "normtweak_core.export.exported",
    "normtweak_core.export.verification.verify",
    "normtweak_core.finetune.model",
    "normtweak_core.model.loading",
    "normtweak_core.model.structure",
    "normtweak_core.training.objective",
    "normtweak_core.training.recompute",
    "normtweak_core.training.trainer",
]
EXPORT_SOURCES = [
    *SOURCES,
    "normtweak_core.export.writer",
    "normtweak_core.finetune.finished",
    "normtweak_core.finetune.source",
    RECORD_SOURCE,
]
# Known by their hashes, or without consequence for a byte.
NOT_READ = {"data", "save_every", "float_model", "gradient_checkpointing"}


def finetune_origin(
    job: Job,
    data: CalibrationResult,
    start: StartingPoint,
    blocks: list[TrainedBlockResult],
    config: FinetuneConfig,
) -> str:
    """Return the hash of all that decides the steps of a training."""
    inputs = {
        "finetune": config.model_dump(exclude=NOT_READ),
        "model": job.fingerprint.sha256,
        "seed": job.seed,
        "levels": start.source.levels,
    }
    parents = [data.windows.sha256, content_hash(start.export)]
    parents += [content_hash(block) for block in blocks]
    key = job.key("finetuning", parents=parents, inputs=inputs, sources=SOURCES)
    return key.rpartition("-")[2]


class FinetuneTraining(Training):
    """A training of the whole quantized model on the float model's logits."""

    def __init__(
        self,
        job: Job,
        data: CalibrationResult,
        start: StartingPoint,
        blocks: list[TrainedBlockResult],
        config: FinetuneConfig,
    ):
        """Note what is to be trained; nothing is loaded yet."""
        self.job, self.data, self.start, self.config = job, data, start, config
        self.blocks, self.steps = blocks, config.steps
        self.origin = finetune_origin(job, data, start, blocks, config)

    def windows_of_the_data(self) -> Any:
        """Return the token ids of all windows."""
        return data_windows(self.data)

    def make_trainer(self) -> "Trainer":
        """Return what trains the export, after its blocks were trained one by one."""
        from normtweak_core.finetune.model import peak_rates
        from normtweak_core.model.loading import load_causal_lm
        from normtweak_core.training.objective import Objective, held_out_losses
        from normtweak_core.training.rates import Rates
        from normtweak_core.training.recompute import recompute_blocks
        from normtweak_core.training.trainer import Trainer, TrainingSetup

        config, job = self.config, self.job
        model = model_on_grids(job, self.start, self.blocks, config)
        if config.gradient_checkpointing:
            prefix, _ = job.blocks
            recompute_blocks(model.get_submodule(prefix))
        peaks = peak_rates(model, config)
        highest = max(peaks.values())
        objective = Objective("kd")
        setup = TrainingSetup(
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
            measured=self.measured,
        )
        teacher = load_causal_lm(job.folder, torch_dtype(job.model.dtype), job.device)
        trained_on, held_out = self.windows
        return Trainer(
            model,
            teacher,
            trained_on,
            setup,
            self.folder,
            self.origin,
            measure=lambda: held_out_losses(model, teacher, held_out, objective),
        )


def model_on_grids(
    job: Job, start: StartingPoint, blocks: list[TrainedBlockResult], config: FinetuneConfig
) -> Any:
    """Return the whole model of the export in float32, its blocks as far as they were trained."""
    import torch
    from safetensors.torch import load_file

    from normtweak_core.model.loading import load_causal_lm
    from normtweak_core.model.structure import find_blocks

    model = load_causal_lm(job.folder, torch_dtype("float32"), job.device)
    prefix = find_blocks(model).prefix
    start.put_into(model, config, job.seed)
    with torch.no_grad():
        for block in blocks:
            for name, value in load_file(state_root() / block.state.path).items():
                model.get_parameter(f"{prefix}.{block.block}.{name}").copy_(value)
    return model


@task(task_run_name="train-{until}", **STAGE)
def finetune_stage(key: str, until: int, training: Any, advance: Any) -> SegmentResult:
    """Return the training after ``until`` steps; the last segment publishes the weights.

    Raises:
        NonFiniteError: Loss or gradient became NaN or infinite.
    """
    trained: FinetuneTraining = training
    return run_segment(trained, key, until, advance, "finetune")


def finetune_export_key(
    job: Job,
    data: CalibrationResult,
    start: StartingPoint,
    trained: SegmentResult,
    config: ExportConfig,
    export_dtype: str,
) -> str:
    """Return the key of the export of a trained model."""
    inputs = {
        "export": config.written,
        "export_dtype": export_dtype,
        "levels": start.source.levels,
        "library": format_library(config.format),
        "model": job.fingerprint.sha256,
        "tokenizer": job.tokenizer_sha256,
        "generation": job.generation_sha256,
    }
    parents = [content_hash(start.export), content_hash(trained), data.windows.sha256]
    return job.key("export", parents=parents, inputs=inputs, sources=EXPORT_SOURCES)


@task(task_run_name="export", **STAGE)
def finetune_export_stage(
    key: str,
    config: ExportConfig,
    export_dtype: str,
    finetune: FinetuneConfig,
    job: Any,
    data: Any,
    start: Any,
    trained: Any,
    details: Any,
) -> ExportResult | RefusedExport:
    """Return the export folder of a fine-tuned model.

    Raises:
        InputError: A tensor is missing.
        NonFiniteError: A tensor is NaN or infinite.
        VerificationError: The tokenizer was replaced while the job ran.
    """
    from safetensors.torch import load_file

    from normtweak_core.export.writer import write_export
    from normtweak_core.finetune.finished import FinishedGrids, other_tensors
    from normtweak_core.finetune.model import load_trained

    events.record("export", part="begin")
    begun: StartingPoint = start
    model = model_on_grids(job, begun, [], finetune)
    load_trained(model, load_file(state_root() / trained.weights.path))
    group = f"g{begun.source.group_size}" if begun.source.group_size else "channel"
    out = state_root() / "exports" / named_after(job, f"w{begun.source.bits}{group}-finetuned", key)

    def write() -> "ExportRecord":
        return write_export(
            out,
            job.folder,
            FinishedGrids(model),
            other_tensors(model),
            config,
            dtype=torch_dtype(export_dtype),
            windows=data_windows(data),
            details=details | {"made_with": made_with(job).model_dump(mode="json")},
        )

    return written(job, write)
