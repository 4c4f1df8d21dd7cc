"""The flow of the polynomial study: float training, then every cell, then table and figures."""

import shutil
import time
from collections.abc import Callable
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.pipeline.operated import operated
from flows.pipeline.run import Run, read_json
from flows.pipeline.run_name import run_name
from flows.recipes.polynomial import PolynomialRecipe, study_device
from flows.reports.polynomial import Study, StudyCell, show_cells
from flows.reports.publish import publish
from normtweak_core.polynomial.config import cells_of
from tasks.engine.environment import peak_rss_bytes
from tasks.stages.polynomial import (
    PolynomialJob,
    cell_key,
    cell_name,
    cell_stage,
    checkpoint_folder,
    float_key,
    float_stage,
)


@flow(name="polynomial", flow_run_name=run_name("{recipe.name}"), validate_parameters=True)
@operated
def polynomial(recipe: PolynomialRecipe) -> dict[str, Any]:
    """Train a float network on polynomial fits, then quantized ones, and compare them.

    Args:
        recipe: Everything that decides the result.
    """
    began = time.monotonic()
    device = study_device(recipe)
    run = Run(
        began,
        job=PolynomialJob(recipe.samples, recipe.network, recipe.seed, recipe.evaluations, device),
    )
    study, training_seconds = train_study(run, recipe)
    publish(study.report())
    return {
        "results_dir": str(study.folder),
        "float_loss": study.float_report["test_loss"],
        "cells": study.rows(),
        "reading": study.readings(),
        "cached": run.cached,
        "training_seconds": training_seconds,
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time(),
        "peak_rss_bytes": peak_rss_bytes(),
        "flow_run_id": str(flow_run.id),
    }


def train_study(run: Run, recipe: PolynomialRecipe) -> tuple[Study, float]:
    """Return a study with its float network and all its cells, and the seconds they took.

    Args:
        run: Its job holds samples and network.
        recipe: The study.
    """
    pretrained = _stage(
        run,
        "float training",
        float_key(run.job, recipe.float_training),
        float_stage,
        config=recipe.float_training,
    )
    cells: list[StudyCell] = []
    study = Study(recipe, read_json(pretrained.report), pretrained.network.sha256, cells)
    for cell in cells_of(recipe.grid, recipe.lora):
        name = cell_name(cell)
        key = cell_key(run.job, cell, recipe.grid, pretrained)
        result = _stage(
            run, name, key, cell_stage, cell=cell, grid=recipe.grid, pretrained=pretrained
        )
        cells.append(
            StudyCell(cell, read_json(result.report), result.network.sha256, result.seconds)
        )
        if not run.cached[name]:
            show_cells(study)
    return study, pretrained.seconds + sum(cell.seconds for cell in cells)


def _stage(run: Run, name: str, key: str, task: Callable[..., Any], **arguments: Any) -> Any:
    result = run.stage(name, key, task, job=run.job, progress=run.progress, **arguments)
    # Kept until the record of the stage is stored: a kill before that costs no step.
    shutil.rmtree(checkpoint_folder(key), ignore_errors=True)
    return result
