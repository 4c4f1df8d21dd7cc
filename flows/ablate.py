"""The flow of an ablation: every cell is a recipe of quantize, carried out up to its evaluation.

Cells share what they have in common through the keys of their stages: a calibration set is made
once for all cells that read it, and cells that differ in the final tune alone share their blocks.
A cell is evaluated as `quantize` evaluates, on the model as reloaded from its export; it is neither
verified by another reader nor registered.
"""

import dataclasses
import logging
import time
from typing import Any

from prefect import flow

from flows.checks.ablation import preflight
from flows.pipeline.declared import Pipeline
from flows.pipeline.execution import Execution
from flows.pipeline.limits import within
from flows.pipeline.measuring import FLOAT, measured
from flows.pipeline.operated import operated
from flows.pipeline.run import Run, with_export_sizes
from flows.pipeline.run_name import run_name
from flows.quantize import QUANTIZE, block_report, final_report
from flows.recipes.ablation import AblationRecipe, PlannedCell, planned_cells
from flows.recipes.file import recipe_sha256
from flows.recipes.quantize import Recipe
from flows.reports.ablation import Ablation, Cell, show_cells
from flows.reports.publish import publish
from tasks.engine.environment import state_root
from tasks.models.job import open_job
from tasks.results import BlockResult, FinalTuneResult
from tasks.stages.dry_run import dry_run
from tasks.stages.training.text import training_text

log = logging.getLogger(__name__)

ABLATE = Pipeline(
    "ablate", (dry_run, training_text.but(when=lambda work: work.recipe.needs_training_text))
)
# What a cell is carried out by.
CELL = QUANTIZE.upto(FLOAT, "evaluate")


@flow(name="ablate", flow_run_name=run_name("{recipe.name}"), validate_parameters=True)
@operated
def ablate(recipe: AblationRecipe) -> dict[str, Any]:
    """Quantize and evaluate a base and every cell of its studies, and compare them.

    Args:
        recipe: Base and studies.
    """
    for warning in preflight(recipe, state_root()).warnings:
        log.warning("%s", warning)
    job = open_job(recipe.model, recipe.seed)
    run = Run(recipe, job, recipe.calibration, execution=Execution(QUANTIZE.all_told))
    with within(recipe.limits):
        return _ablated(recipe, run)


def _ablated(recipe: AblationRecipe, run: Run) -> dict[str, Any]:
    text = ABLATE.walk(run, run.execution.visit).get("training text")
    planned = planned_cells(recipe, str(state_root() / text.text.path) if text else "")
    distinct: dict[str, PlannedCell] = {}
    for cell in planned:
        distinct.setdefault(recipe_sha256(cell.recipe), cell)
    made: dict[str, Cell] = {}
    cached: dict[str, bool] = {}
    for number, (sha256, cell) in enumerate(distinct.items(), start=1):
        log.info("cell %d of %d: %s", number, len(distinct), cell.name)
        made[sha256] = _carry_out(run, cell, sha256)
        cached[cell.name] = made[sha256].cached
        if not made[sha256].cached:
            show_cells(Ablation(recipe, run.job.source.name, list(made.values())))
    ablation = Ablation(
        recipe,
        run.job.source.name,
        [
            dataclasses.replace(
                made[recipe_sha256(cell.recipe)], study=cell.study, value=cell.value
            )
            for cell in planned
        ],
    )
    publish(ablation.report())
    return {
        "results_dir": str(ablation.folder),
        "studies": ablation.studies(),
        "cells": ablation.rows(),
        "reading": ablation.readings(),
        "cached": cached,
        "cpu_seconds": time.process_time(),
    }


def _carry_out(shared: Run, cell: PlannedCell, sha256: str) -> Cell:
    """Return a cell with its numbers; what is there of it is not made again."""
    recipe = cell.recipe
    run = Run(
        recipe,
        dataclasses.replace(shared.job, seed=recipe.seed),
        recipe.calibration,
        name=f"{cell.name}, ",
        progress=shared.progress,
        execution=Execution(QUANTIZE.all_told),
    )
    found = CELL.walk(run, run.execution.visit)
    export, blocks, tuned = found["export"], found["block"], found.get("final tune")
    return Cell(
        study=cell.study,
        value=cell.value,
        recipe=recipe,
        recipe_sha256=sha256,
        export_sha256=export.export_sha256,
        metrics=with_export_sizes(measured(run, found, "evaluate", FLOAT), export).metrics,
        # Of the stages as they were made, whichever cell made them: what the cell alone would cost.
        seconds=found["calibrate"].seconds
        + sum(block.seconds for block in blocks)
        + (tuned.seconds if tuned else 0.0),
        blocks=len(blocks),
        tweaks_kept=_tweaks_kept(recipe, blocks),
        final_tune=_final_tune(tuned),
        problems=[one for block in blocks for one in block_report(block).problems()],
        cached=all(run.cached.values()),
    )


def _tweaks_kept(recipe: Recipe, blocks: list[BlockResult]) -> int:
    if not recipe.norm_tweak.enabled:
        return 0
    tweaks = [block_report(block).tweak for block in blocks]
    return sum(tweak is not None and tweak.accepted for tweak in tweaks)


def _final_tune(tuned: FinalTuneResult | None) -> str:
    return "off" if tuned is None else final_report(tuned).outcome
