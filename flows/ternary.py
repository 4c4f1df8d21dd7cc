"""The ternary flow: a float model goes in, a verified, registered ternary model comes out."""

import json
import logging
import time
from dataclasses import dataclass
from typing import Any

from prefect import flow

from flows.checks.ternary import ternary_preflight
from flows.pipeline.float_types import until_it_holds
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
from flows.recipes.ternary import TernaryRecipe
from flows.reports.publish import publish
from flows.reports.results import write_evaluation
from flows.reports.ternary import TernaryReports, step_metrics
from normtweak_core.export.payload import payload_bytes
from tasks.engine.environment import state_root
from tasks.models.job import open_job
from tasks.results import CalibrationResult, ExportResult, FloatType, RefusedExport
from tasks.stages.calibrate import calibration_length
from tasks.stages.float_type import ternary_float_type_key, ternary_float_type_stage
from tasks.stages.training.segments import SegmentResult
from tasks.stages.training.surgery import SurgeryResult, surgery_key, surgery_stage
from tasks.stages.training.ternary import TernaryTraining, train_stage
from tasks.stages.training.ternary_export import ternary_export_key, ternary_export_stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """An export and what it was made by way of."""

    data: CalibrationResult
    surgery: SurgeryResult
    segments: list[SegmentResult]
    float_type: FloatType
    export: ExportResult


@flow(name="ternary", flow_run_name=run_name("{recipe.name}"), validate_parameters=True)
@operated
def ternary(recipe: TernaryRecipe) -> dict[str, Any]:
    """Train a model until it lives in ternary weights; verify, evaluate and register it.

    Args:
        recipe: Everything that decides the result.
    """
    began = time.monotonic()
    for warning in ternary_preflight(recipe, state_root()).warnings:
        log.warning("%s", warning)
    run = Run(began, job=open_job(recipe.model, recipe.seed))
    rehearse(run, streams=False)
    items = score_float_model(run, recipe.evaluation)
    made = make_ternary(run, recipe)
    data, surgery, segments, export = made.data, made.surgery, made.segments, made.export
    trained = segments[-1]
    verify(run, recipe.export, export)
    length = calibration_length(run.job, recipe.ternary.data)
    measured = measure_export(run, recipe.evaluation, items, length, export)
    metrics = measured.metrics
    reports = TernaryReports(
        recipe=recipe,
        num_blocks=run.job.blocks[1],
        cuts=surgery.losses,
        losses=trained.losses,
        held_out={step: loss for step, loss in trained.nll.items() if step},
        best=trained.best,
        objective=trained.held_out,
        tokens=recipe.ternary.steps * recipe.ternary.batch * length,
        quality=read_json(data.quality),
        metrics=metrics,
        origin=run.source_facts(data) | {"export_sha256": export.export_sha256},
        export=state_root() / export.folder,
        float_type=made.float_type,
        float_bytes=payload_bytes(run.job.source.path),
    )
    files = publish(reports.report())
    files += write_evaluation(
        reports.folder, measured, recipe.seed, recipe.name, run.job.source.name
    )
    registered = register(run, recipe, export, metrics, reports, files, measured.samples)
    return outcome(run, export, metrics, reports, registered, []) | {
        "surgery": surgery.losses,
        "training": training_facts(segments, reports.tokens, reports.held_out),
    }


def make_ternary(run: Run, recipe: TernaryRecipe) -> Made:
    """Return the export that a recipe leads to, neither verified nor evaluated yet.

    Args:
        run: The run.
        recipe: Everything that decides the result.
    """
    data = training_data(run, recipe.ternary.data, "ternary.data")
    surgery = run.stage(
        "surgery",
        surgery_key(run.job, data, recipe.ternary),
        surgery_stage,
        config=recipe.ternary,
        job=run.job,
        data=data,
    )
    chosen = run.stage(
        "float type",
        ternary_float_type_key(run.job, recipe.export, data, surgery, recipe.ternary),
        ternary_float_type_stage,
        config=recipe.export,
        ternary=recipe.ternary,
        job=run.job,
        data=data,
        surgery=surgery,
    )
    segments = _train(run, recipe, data, surgery)

    def make(chosen: FloatType) -> tuple[FloatType, ExportResult | RefusedExport]:
        return chosen, _export(run, recipe, data, surgery, segments[-1], chosen)

    chosen, export = until_it_holds(recipe.export, chosen, make)
    return Made(data, surgery, segments, chosen, export)


def _train(
    run: Run, recipe: TernaryRecipe, data: CalibrationResult, surgery: SurgeryResult
) -> list[SegmentResult]:
    config, blocks = recipe.ternary, run.job.blocks[1]
    shown = Shown(
        recipe.name,
        config.model_dump(mode="json", exclude={"data"}) | {"seed": recipe.seed},
        lambda step: step_metrics(recipe, blocks, step),
    )
    return train(run, TernaryTraining(run.job, data, surgery, config), train_stage, shown)


def _export(
    run: Run,
    recipe: TernaryRecipe,
    data: CalibrationResult,
    surgery: SurgeryResult,
    trained: SegmentResult,
    chosen: FloatType,
) -> ExportResult | RefusedExport:
    details = {
        "recipe": json.loads(recipe.model_dump_json()),
        "lineage": run.source_facts(data) | chosen.tags(),
        "calibration_sample": calibration_sample(data),
        "surgery": surgery.losses,
    }
    return run.stage(
        "export",
        ternary_export_key(run.job, data, trained, recipe.export, chosen.dtype),
        ternary_export_stage,
        config=recipe.export,
        export_dtype=chosen.dtype,
        ternary=recipe.ternary,
        job=run.job,
        surgery=surgery,
        trained=trained,
        data=data,
        details=details,
    )
