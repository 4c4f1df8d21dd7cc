"""The main flow: a float model goes in; a verified, registered low-bit version comes out."""

import logging
import time
from dataclasses import dataclass
from typing import Any

from prefect import flow

from flows.checks.inputs import preflight
from flows.pipeline.float_types import until_it_holds
from flows.pipeline.measuring import measure_export, score_float_model
from flows.pipeline.operated import operated
from flows.pipeline.run import (
    Run,
    calibration_sample,
    calibration_set,
    outcome,
    read_json,
    register,
    rehearse,
    verify,
)
from flows.pipeline.run_name import run_name
from flows.recipes.quantize import Recipe
from flows.reports.publish import publish
from flows.reports.quantize import Reports, rolled_back, show_blocks
from flows.reports.results import write_evaluation
from normtweak_core.errors import ProblemError
from normtweak_core.export.payload import payload_bytes
from normtweak_core.quantization.config import PropagationConfig, QuantizationConfig
from normtweak_core.quantization.report import BlockReport
from normtweak_core.tweak.config import NormTweakConfig
from normtweak_core.tweak.report import FinalTuneReport
from tasks.engine.environment import state_root
from tasks.models.job import open_job
from tasks.results import (
    BlockResult,
    CalibrationResult,
    ExportResult,
    FinalTuneResult,
    FloatType,
    RefusedExport,
)
from tasks.stages.blocks import block_key, measured_stages, quantize_block_stage
from tasks.stages.calibrate import calibration_length
from tasks.stages.chain import BlockChain, ChainSettings
from tasks.stages.export import export_key, export_stage
from tasks.stages.float_type import float_type_key, float_type_stage
from tasks.stages.tune import final_tune_key, final_tune_stage

log = logging.getLogger(__name__)

RTN = "rtn"  # label of the baseline, which every drift plot shows beside the run
BASELINE = {"method": "rtn", "propagation": PropagationConfig(alpha=0)}

# Several recipes can lead to one export, and the files of a cached one are not written again.
ABOUT_THE_MANIFEST = (
    "recipe and lineage are those of the run that wrote this folder. Every recipe that has led to "
    "it has its own in a folder under reports/; in the registry, in reports/ beside model/."
)


@dataclass(frozen=True)
class Quantized:
    """Finished blocks and norms, in one float type."""

    float_type: FloatType
    settings: ChainSettings
    blocks: list[BlockResult]
    tuned: FinalTuneResult | None


@dataclass(frozen=True)
class Made:
    """An export and what it was made by way of."""

    calibration: CalibrationResult
    quantized: Quantized
    baseline: list[BlockResult]  # rounded to nearest
    export: ExportResult


@flow(name="quantize", flow_run_name=run_name("{recipe.name}"), validate_parameters=True)
@operated
def quantize(recipe: Recipe) -> dict[str, Any]:
    """Quantize, verify, evaluate and register a model.

    Args:
        recipe: Everything that decides the result.
    """
    began = time.monotonic()
    # The command has done so before it started a server; a scheduled run has not.
    for warning in preflight(recipe, state_root()).warnings:
        log.warning("%s", warning)
    run = Run(began, job=open_job(recipe.model, recipe.seed))
    rehearse(run)
    items = score_float_model(run, recipe.evaluation)
    made = make_quantized(run, recipe)
    calibration, export = made.calibration, made.export
    blocks, tuned = made.quantized.blocks, made.quantized.tuned
    verify(run, recipe.export, export)
    length = calibration_length(run.job, recipe.calibration)
    measured = measure_export(run, recipe.evaluation, items, length, export)
    metrics = measured.metrics
    reports = Reports(
        recipe=recipe,
        drift=measured_stages(blocks, made.baseline, tuned, recipe.norm_tweak.enabled),
        blocks=[block_report(block) for block in blocks],
        baseline=[block_report(block) for block in made.baseline],
        final_tune=final_report(tuned),
        quality=read_json(calibration.quality),
        metrics=metrics,
        origin=run.source_facts(calibration) | {"export_sha256": export.export_sha256},
        export=state_root() / export.folder,
        float_type=made.quantized.float_type,
        float_bytes=payload_bytes(run.job.source.path),
    )
    files = publish(reports.report())
    files += write_evaluation(
        reports.folder, measured, recipe.seed, recipe.name, run.job.source.name
    )
    registered = register(run, recipe, export, metrics, reports, files, measured.samples)
    rows = [_block_row(run, block) for block in blocks]
    return outcome(run, export, metrics, reports, registered, rows)


def make_quantized(run: Run, recipe: Recipe) -> Made:
    """Return the export that a recipe leads to, neither verified nor evaluated yet.

    Args:
        run: The run; a rebuild leaves out the baseline.
        recipe: Everything that decides the result.
    """
    calibration = calibration_set(run, recipe.calibration, "calibrate")
    quantized, export = quantize_model(run, recipe, calibration, "block")
    baseline: list[BlockResult] = []
    if not run.is_rebuild:
        settings = baseline_settings(quantized.settings)
        baseline = quantize_blocks(run, recipe, calibration, settings, RTN)
    return Made(calibration, quantized, baseline, export)


def quantize_model(
    run: Run, recipe: Recipe, calibration: CalibrationResult, label: str
) -> tuple[Quantized, ExportResult]:
    """Return finished blocks and norms, and their export in a float type that holds it.

    The scales are rounded to the float type before anything is quantized: in another one the blocks
    are others.

    Args:
        run: The run.
        recipe: Everything that decides the result.
        calibration: The windows that the blocks are calibrated with.
        label: Of the stages of the blocks.
    """

    def make(chosen: FloatType) -> tuple[Quantized, ExportResult | RefusedExport]:
        settings = ChainSettings(recipe.quantization, recipe.norm_tweak, chosen.dtype)
        blocks = quantize_blocks(run, recipe, calibration, settings, label)
        tuned = tune_norms(run, recipe, calibration, blocks, settings)
        quantized = Quantized(chosen, settings, blocks, tuned)
        return quantized, export_model(run, recipe, calibration, quantized)

    chosen = run.stage(
        "float type",
        float_type_key(run.job, recipe.export, calibration, recipe.quantization),
        float_type_stage,
        config=recipe.export,
        quantization=recipe.quantization,
        job=run.job,
        calibration=calibration,
    )
    return until_it_holds(recipe.export, chosen, make)


def baseline_settings(settings: ChainSettings) -> ChainSettings:
    """Return the same chain rounded to nearest, without any training."""
    values = settings.quantization.model_dump() | BASELINE
    rounded = QuantizationConfig.model_validate(values)
    return ChainSettings(rounded, NormTweakConfig(enabled=False), settings.export_dtype)


def quantize_blocks(
    run: Run,
    recipe: Recipe,
    calibration: CalibrationResult,
    settings: ChainSettings,
    label: str,
) -> list[BlockResult]:
    """Return all blocks of one chain, each read from the cache or made.

    Args:
        run: The run.
        recipe: Says what to do about problems.
        calibration: The windows that the blocks are calibrated with.
        settings: What the blocks have in common.
        label: Of the stages.

    Raises:
        ProblemError: There is a problem and the recipe allows none.
    """
    first = block_key(run.job, calibration, settings, 0, None)
    chain = BlockChain(run.job, calibration, settings, first)
    finished: list[BlockResult] = []
    with (
        chain.owned(),
        run.progress.on_terminal(
            f"{label}s" if label.endswith("block") else f"{label} blocks", "blocks"
        ) as advance,
    ):
        for index in range(run.job.blocks[1]):
            parent = finished[-1] if finished else None
            key = block_key(run.job, calibration, settings, index, parent)
            block = run.stage(
                f"{label} {index}",
                key,
                quantize_block_stage,
                label=label,
                index=index,
                chain=chain,
                finished=list(finished),
            )
            finished.append(block)
            advance(index + 1, run.job.blocks[1])
            if label == "block" and not run.cached[f"{label} {index}"]:
                show_blocks([block_report(one) for one in finished])
            if label != RTN:  # the baseline is there to be looked at, not to be heeded
                report = block_report(block)
                _heed(recipe, report.problems(), report.notes())
    return finished


def _heed(recipe: Recipe, problems: list[str], notes: list[str]) -> None:
    """Tell problems and notes; neither is allowed where the recipe says so."""
    for problem in problems:
        log.warning("%s", problem)
    for note in notes:
        log.info("%s", note)
    found = problems + notes
    if found and recipe.on_problem == "fail":
        raise ProblemError(
            f"on_problem: fail allows no problem; found: {found[0]}. "
            "Change the recipe, or set on_problem: warn"
        )


def tune_norms(
    run: Run,
    recipe: Recipe,
    calibration: CalibrationResult,
    blocks: list[BlockResult],
    settings: ChainSettings,
) -> FinalTuneResult | None:
    """Return the norms after the final tune; None where the recipe has none.

    Raises:
        ProblemError: It was rolled back and the recipe allows no problem.
    """
    config = recipe.final_tune
    if not config.enabled:
        return None
    key = final_tune_key(run.job, calibration, blocks, settings, config)
    tuned = run.stage(
        "final tune",
        key,
        final_tune_stage,
        config=config,
        job=run.job,
        calibration=calibration,
        blocks=blocks,
        settings=settings,
        progress=run.progress,
    )
    report = final_report(tuned)
    if report.outcome == "rolled back":
        _heed(recipe, [], [rolled_back(report)])
    return tuned


def export_model(
    run: Run, recipe: Recipe, calibration: CalibrationResult, quantized: Quantized
) -> ExportResult | RefusedExport:
    """Return the export of finished blocks and norms, or why their float type is refused."""
    blocks, tuned, settings = quantized.blocks, quantized.tuned, quantized.settings
    details = {
        "about": ABOUT_THE_MANIFEST,
        "recipe": recipe.model_dump(mode="json"),
        "lineage": run.source_facts(calibration) | quantized.float_type.tags(),
        "calibration_sample": calibration_sample(calibration),
        "blocks": [read_json(block.report) for block in blocks],
        "final_tune": read_json(tuned.report) if tuned else None,
    }
    return run.stage(
        "export",
        export_key(run.job, calibration, blocks, tuned, settings, recipe.export),
        export_stage,
        config=recipe.export,
        job=run.job,
        blocks=blocks,
        tuned=tuned,
        settings=settings,
        calibration=calibration,
        details=details,
    )


def _block_row(run: Run, block: BlockResult) -> dict[str, Any]:
    report = block_report(block)
    return {
        "index": block.block,
        "cached": run.cached[f"block {block.block}"],
        "seconds": block.seconds,
        "error_before": report.drift_quantized,
        "error_after": report.drift_tweaked,
        "tweak_accepted": report.tweak.accepted if report.tweak else None,
    }


def block_report(block: BlockResult) -> BlockReport:
    """Return what happened to a block."""
    return BlockReport.model_validate(read_json(block.report))


def final_report(tuned: FinalTuneResult | None) -> FinalTuneReport | None:
    """Return what became of the final tune; None where there was none."""
    return FinalTuneReport.model_validate(read_json(tuned.report)) if tuned else None
