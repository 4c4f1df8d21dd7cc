"""The flow of the polynomial study: float training, then every cell, then table and figures."""

import time
from typing import Any

from prefect import flow

from flows.pipeline.declared import Pipeline
from flows.pipeline.execution import Execution
from flows.pipeline.operated import operated
from flows.pipeline.run_name import run_name
from flows.recipes.polynomial import PolynomialRecipe, study_device
from flows.reports.polynomial import Study, StudyCell, show_cells
from flows.reports.publish import publish
from normtweak_core.polynomial.config import cells_of
from tasks.engine.artifacts import read_json
from tasks.engine.stage import Found
from tasks.stages.polynomial import PolynomialResult, PolynomialWork, float_training, train_cell

POLYNOMIAL = Pipeline("polynomial", (float_training, train_cell))


@flow(name="polynomial", flow_run_name=run_name("{recipe.name}"), validate_parameters=True)
@operated
def polynomial(recipe: PolynomialRecipe) -> dict[str, Any]:
    """Train a float network on polynomial fits, then quantized ones, and compare them.

    Args:
        recipe: Everything that decides the result.
    """
    work, execution = PolynomialWork(recipe, study_device(recipe)), Execution({"cell": _tell_cell})
    found = POLYNOMIAL.walk(work, execution.visit)
    study = study_of(recipe, found)
    cells = found["cell"]
    publish(study.report())
    return {
        "results_dir": str(study.folder),
        "float_loss": study.float_report["test_loss"],
        "cells": study.rows(),
        "reading": study.readings(),
        "cached": execution.cached,
        "training_seconds": sum(one.seconds for one in (found["float training"], *cells)),
        "cpu_seconds": time.process_time(),
    }


def study_of(recipe: PolynomialRecipe, found: Found) -> Study:
    """Return a study with its float network and those of its cells that are there, in order."""
    pretrained: PolynomialResult = found["float training"]
    planned = zip(cells_of(recipe.grid, recipe.lora), found["cell"], strict=False)
    return Study(
        recipe,
        read_json(pretrained.report),
        pretrained.network.sha256,
        [
            StudyCell(cell, read_json(one.report), one.network.sha256, one.seconds)
            for cell, one in planned
        ],
    )


def _tell_cell(work: PolynomialWork, found: Found, cached: bool) -> None:
    if not cached:
        show_cells(study_of(work.recipe, found))
