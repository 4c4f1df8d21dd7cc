"""The ternary flow: a float model goes in, a verified, registered ternary model comes out."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.budget import peak_rss_bytes
from flows.running import Run, evaluate_export, read_json, register
from flows.ternary_preflight import ternary_preflight
from flows.ternary_recipe import TernaryRecipe, about_data
from flows.ternary_report import TernaryReports, publish_ternary_reports, step_metrics
from normtweak_core.errors import InputError
from tasks.caching import cached_result
from tasks.calibrate import calibrate, calibration_key, calibration_length
from tasks.environment import state_root
from tasks.exporting import verify_key, verify_stage
from tasks.float_type import float_type_key, float_type_stage
from tasks.job import open_job
from tasks.results import CalibrationResult, ExportResult
from tasks.runs import own_run
from tasks.surgery import SurgeryResult, surgery_key, surgery_stage
from tasks.ternary_export import ternary_export_key, ternary_export_stage
from tasks.training import SegmentResult, Training, segment_ends, segment_key, train_stage

log = logging.getLogger(__name__)

SECONDS_BETWEEN_UPDATES = 3.0  # of the progress on Prefect's page


@flow(name="ternary", flow_run_name="{recipe.name}", validate_parameters=True)
def ternary(recipe: TernaryRecipe) -> dict[str, Any]:
    """Train a model until it lives in ternary weights; verify, evaluate and register it.

    Args:
        recipe: Everything that decides the result.
    """
    own_run(state_root(), flow_run.id)
    began = time.monotonic()
    for warning in ternary_preflight(recipe, state_root()).warnings:
        log.warning("%s", warning)
    run = Run(open_job(recipe.model, recipe.seed))
    data = _data(run, recipe)
    surgery = run.stage(
        "surgery",
        surgery_key(run.job, data, recipe.ternary),
        surgery_stage,
        config=recipe.ternary,
        job=run.job,
        data=data,
    )
    segments = _train(run, recipe, data, surgery)
    trained = segments[-1]
    export = _export(run, recipe, data, surgery, trained)
    run.stage("verify", verify_key(run.job, export), verify_stage, export=export)
    length = calibration_length(run.job, recipe.ternary.data)
    metrics = evaluate_export(run, recipe.evaluation.perplexity, length, export)
    reports = TernaryReports(
        recipe=recipe,
        num_blocks=run.job.blocks[1],
        cuts=surgery.losses,
        losses=trained.losses,
        held_out={segment.until: segment.held_out for segment in segments},
        tokens=recipe.ternary.steps * recipe.ternary.batch * length,
        quality=read_json(data.quality),
        metrics=metrics,
        origin=run.source_facts(data) | {"export_sha256": export.export_sha256},
        export=state_root() / export.folder,
    )
    files = publish_ternary_reports(reports)
    registered = register(recipe, export, metrics, reports, files)
    return {
        "export_dir": str(state_root() / export.folder),
        "export_sha256": export.export_sha256,
        "reports_dir": str(reports.folder),
        "metrics": metrics,
        "registered": registered,
        "blocks": [],
        "surgery": surgery.losses,
        "training": {
            "steps": trained.until,
            "tokens": reports.tokens,
            "seconds": trained.seconds,
            "held_out": {str(segment.until): segment.held_out for segment in segments},
        },
        "cached": run.cached,
        "problems": [],
        "seconds": time.monotonic() - began,
        "peak_rss_bytes": peak_rss_bytes(),
        "flow_run_id": str(flow_run.id),
    }


def _data(run: Run, recipe: TernaryRecipe) -> CalibrationResult:
    config = recipe.ternary.data
    try:
        return run.stage(
            "data",
            calibration_key(run.job, config),
            calibrate,
            config=config,
            job=run.job,
            progress=run.progress,
        )
    except InputError as error:
        raise InputError(about_data(str(error))) from error


def _train(
    run: Run, recipe: TernaryRecipe, data: CalibrationResult, surgery: SurgeryResult
) -> list[SegmentResult]:
    """Return the segments, each a stage of its own; the last one holds the weights."""
    training = Training(run.job, data, surgery, recipe.ternary)
    ends = segment_ends(recipe.ternary.steps)
    keys = [segment_key(training.origin, until) for until in ends]
    everything_cached = all(cached_result(key) is not None for key in keys)
    with ExitStack() as stack:
        advance: Callable[..., None] = lambda *_: None  # noqa: E731 - replaced where work is left
        if not everything_cached:
            advance = stack.enter_context(_shown(run, recipe, training))
        segments = [
            run.stage(
                f"train {until}", key, train_stage, until=until, training=training, advance=advance
            )
            for until, key in zip(ends, keys, strict=True)
        ]
    shutil.rmtree(training.folder, ignore_errors=True)  # every segment has its record
    return segments


@contextmanager
def _shown(run: Run, recipe: TernaryRecipe, training: Training) -> Iterator[Callable[..., None]]:
    """Show a training while it runs: on the terminal, on Prefect's page, in MLflow."""
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    from flows.report import artifact_key
    from tasks.tracking import TrainingRun

    config, blocks = recipe.ternary, run.job.blocks[1]
    params = config.model_dump(mode="json", exclude={"data"}) | {"seed": recipe.seed}
    artifact = create_progress_artifact(
        progress=0.0, key=artifact_key(recipe.name, "training"), description="Ternary training"
    )
    shown = time.monotonic()
    with (
        TrainingRun(recipe.name, training.origin, params) as tracked,
        run.progress.stage("training", "steps") as bar,
    ):

        def advance(done: int, steps: int, loss: float, speed: float) -> None:
            nonlocal shown
            bar(done, steps, f"loss {loss:.4f}, {speed:,.0f} tokens/s")
            tracked.log(done, {"train/loss": loss, **step_metrics(recipe, blocks, done - 1)})
            if done == steps or time.monotonic() - shown > SECONDS_BETWEEN_UPDATES:
                update_progress_artifact(artifact, progress=100 * done / steps)
                shown = time.monotonic()

        yield advance


def _export(
    run: Run,
    recipe: TernaryRecipe,
    data: CalibrationResult,
    surgery: SurgeryResult,
    trained: SegmentResult,
) -> ExportResult:
    chosen = run.stage(
        "float type",
        float_type_key(run.job, recipe.export),
        float_type_stage,
        config=recipe.export,
        job=run.job,
    )
    details = {
        "recipe": json.loads(recipe.model_dump_json()),
        "lineage": run.source_facts(data),
        "surgery": surgery.losses,
    }
    return run.stage(
        "export",
        ternary_export_key(run.job, trained, recipe.export, chosen.dtype),
        ternary_export_stage,
        config=recipe.export,
        export_dtype=chosen.dtype,
        ternary=recipe.ternary,
        job=run.job,
        surgery=surgery,
        trained=trained,
        details=details,
    )
