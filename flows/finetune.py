"""The fine-tuning flow: an export goes in and is trained on, on its own grid."""

import json
import logging
import time
from dataclasses import dataclass
from typing import Any

from prefect import flow

from flows.checks.finetune import finetune_preflight
from flows.pipeline.float_types import EXACT, until_it_holds
from flows.pipeline.measuring import measure_export, score_float_model
from flows.pipeline.operated import operated
from flows.pipeline.run import (
    Run,
    calibration_sample,
    outcome,
    read_json,
    register,
    rehearse,
    verify,
)
from flows.pipeline.run_name import run_name
from flows.pipeline.training import Shown, train, training_data, training_facts
from flows.recipes.finetune import FinetuneRecipe
from flows.reports.finetune import FinetuneReports, show_trained_blocks
from flows.reports.publish import publish
from flows.reports.results import write_evaluation
from normtweak_core.export.payload import payload_bytes
from normtweak_core.finetune.source import GRID
from normtweak_core.training.rates import Rates
from tasks.engine.environment import state_root
from tasks.models.job import open_job
from tasks.models.starting_point import StartingPoint, export_in_root
from tasks.results import CalibrationResult, ExportResult, FloatType, RefusedExport
from tasks.stages.calibrate import calibration_length
from tasks.stages.float_type import start_float_type_key, start_float_type_stage
from tasks.stages.training.finetune import (
    FinetuneTraining,
    finetune_export_key,
    finetune_export_stage,
    finetune_stage,
)
from tasks.stages.training.finetune_blocks import (
    FinetuneChain,
    TrainedBlockResult,
    finetune_block_stage,
    trained_block_key,
)
from tasks.stages.training.segments import SegmentResult

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """An export and what it was made by way of."""

    data: CalibrationResult
    blocks: list[TrainedBlockResult]
    segments: list[SegmentResult]
    float_type: FloatType
    export: ExportResult


@flow(name="finetune", flow_run_name=run_name("{recipe.name}"), validate_parameters=True)
@operated
def finetune(recipe: FinetuneRecipe) -> dict[str, Any]:
    """Train an export on, block by block and end to end; verify, evaluate and register it.

    Args:
        recipe: Everything that decides the result.
    """
    began = time.monotonic()
    ready = finetune_preflight(recipe, state_root())
    for warning in ready.warnings:
        log.warning("%s", warning)
    run = Run(began, job=open_job(ready.float_model, recipe.seed))
    start = StartingPoint(ready.export, export_in_root(ready.export))
    rehearse(run)
    items = score_float_model(run, recipe.evaluation)
    made = make_finetuned(run, recipe, start)
    data, blocks, segments, export = made.data, made.blocks, made.segments, made.export
    verify(run, recipe.export, export)
    length = calibration_length(run.job, recipe.finetune.data)
    before = measure_export(
        run, recipe.evaluation, items, length, start.export, "evaluate start"
    ).metrics
    measured = measure_export(run, recipe.evaluation, items, length, export)
    after = measured.metrics
    reports = FinetuneReports(
        recipe=recipe,
        source=ready.export,
        blocks=blocks,
        losses=segments[-1].losses,
        held_out=segments[-1].held_out,
        best=segments[-1].best,
        tokens=recipe.finetune.steps * recipe.finetune.batch * length,
        quality=read_json(data.quality),
        start=before,
        metrics=after,
        origin=run.source_facts(data) | {"export_sha256": export.export_sha256},
        export=state_root() / export.folder,
        float_type=made.float_type,
        float_bytes=payload_bytes(run.job.source.path),
    )
    files = publish(reports.report())
    files += write_evaluation(
        reports.folder, measured, recipe.seed, recipe.name, run.job.source.name
    )
    metrics = after | {
        "start/perplexity/quantized": before["perplexity/quantized"],
        "start/kl/mean": before["kl/mean"],
    }
    if (kept := reports.distance_kept) is not None:
        metrics["distance_kept"] = kept
    registered = register(run, recipe, export, metrics, reports, files, measured.samples)
    for problem in reports.problems():
        log.warning("%s", problem)
    for note in reports.notes():
        log.info("%s", note)
    rows = [_block_row(run, block) for block in blocks]
    return outcome(run, export, metrics, reports, registered, rows) | {
        "training": training_facts(segments, reports.tokens, reports.held_out)
    }


def make_finetuned(run: Run, recipe: FinetuneRecipe, start: StartingPoint) -> Made:
    """Return the export that a recipe leads to, neither verified nor evaluated yet.

    Args:
        run: The run, on the float model.
        recipe: Everything that decides the result.
        start: The export that is trained on.
    """
    data = training_data(run, recipe.finetune.data, "finetune.data")
    chosen = run.stage(
        "float type",
        start_float_type_key(run.job, recipe.export, data, start),
        start_float_type_stage,
        job=run.job,
        data=data,
        start=start,
    )
    blocks = _train_blocks(run, recipe, data, start)
    segments = _train_whole(run, recipe, data, start, blocks)

    def make(chosen: FloatType) -> tuple[FloatType, ExportResult | RefusedExport]:
        return chosen, _export(run, recipe, data, start, segments[-1], chosen)

    # The trained scales are numbers of the first export's float type: only float32 holds them too.
    chosen, export = until_it_holds(recipe.export, chosen, make, EXACT)
    return Made(data, blocks, segments, chosen, export)


def _train_blocks(
    run: Run, recipe: FinetuneRecipe, data: CalibrationResult, start: StartingPoint
) -> list[TrainedBlockResult]:
    """Return all blocks, each read from the cache or trained; none without block steps."""
    config = recipe.finetune
    chain = FinetuneChain(run.job, data, start, config)
    finished: list[TrainedBlockResult] = []
    for index in range(run.job.blocks[1] if config.block_steps else 0):
        parent = finished[-1] if finished else None
        block = run.stage(
            f"block {index}",
            trained_block_key(run.job, data, start, config, index, parent),
            finetune_block_stage,
            index=index,
            chain=chain,
            finished=list(finished),
            progress=run.progress,
        )
        finished.append(block)
        if not run.cached[f"block {index}"]:
            show_trained_blocks(finished)
    return finished


def _train_whole(
    run: Run,
    recipe: FinetuneRecipe,
    data: CalibrationResult,
    start: StartingPoint,
    blocks: list[TrainedBlockResult],
) -> list[SegmentResult]:
    config = recipe.finetune
    rates = Rates(config.steps, config.scale_lr)
    shown = Shown(
        recipe.name,
        config.model_dump(mode="json", exclude={"data"}) | {"seed": recipe.seed},
        lambda step: {"learning_rate": rates.lr_at(step)},
    )
    training = FinetuneTraining(run.job, data, start, blocks, config)
    return train(run, training, finetune_stage, shown)


def _export(
    run: Run,
    recipe: FinetuneRecipe,
    data: CalibrationResult,
    start: StartingPoint,
    trained: SegmentResult,
    chosen: FloatType,
) -> ExportResult | RefusedExport:
    # Written as the main job's recipe names them, so that this export can be trained on as well.
    recipe_and_grid = json.loads(recipe.model_dump_json()) | {
        "quantization": {key: getattr(start.source, key) for key in GRID}
    }
    details = {
        "recipe": recipe_and_grid,
        "calibration_sample": calibration_sample(data),
        "lineage": run.source_facts(data)
        | {"parent_export_sha256": start.export.export_sha256}
        | chosen.tags(),
    }
    return run.stage(
        "export",
        finetune_export_key(run.job, data, start, trained, recipe.export, chosen.dtype),
        finetune_export_stage,
        config=recipe.export,
        export_dtype=chosen.dtype,
        finetune=recipe.finetune,
        job=run.job,
        data=data,
        start=start,
        trained=trained,
        details=details,
    )


def _block_row(run: Run, block: TrainedBlockResult) -> dict[str, Any]:
    return {
        "index": block.block,
        "cached": run.cached[f"block {block.block}"],
        "seconds": block.seconds,
        "error_before": block.distance_before,
        "error_after": block.distance_after,
        "accepted": block.accepted,
    }
