"""The flow of the polynomial study: float training, then every cell, then table and figures."""

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.utilities.annotations import quote

from flows.budget import peak_rss_bytes
from flows.polynomial_recipe import PolynomialRecipe, study_device
from flows.polynomial_report import Study, StudyCell, write_study
from normtweak_core.polynomial.config import cells_of
from tasks.artifacts import ArtifactRef
from tasks.caching import cached_result
from tasks.environment import state_root
from tasks.polynomial import (
    PolynomialJob,
    PolynomialResult,
    cell_key,
    cell_name,
    cell_stage,
    checkpoint_folder,
    float_key,
    float_stage,
)
from tasks.progress import Progress
from tasks.runs import own_run

log = logging.getLogger(__name__)


@dataclass
class Run:
    """One execution of a study."""

    job: PolynomialJob
    progress: Progress = field(default_factory=Progress)
    cached: dict[str, bool] = field(default_factory=dict)

    def stage(
        self, name: str, key: str, task: Callable[..., PolynomialResult], **arguments: Any
    ) -> PolynomialResult:
        """Run a stage, or take its cached result."""
        self.cached[name] = cached_result(key) is not None
        log.info("%s%s", name, ": cached" if self.cached[name] else "")
        quoted = {name: quote(value) for name, value in arguments.items()}
        result = task(key=key, job=quote(self.job), progress=quote(self.progress), **quoted)
        # Kept until the record of the stage is stored: a kill before that costs no step.
        shutil.rmtree(checkpoint_folder(key), ignore_errors=True)
        return result


@flow(name="polynomial", flow_run_name="{recipe.name}", validate_parameters=True)
def polynomial(recipe: PolynomialRecipe) -> dict[str, Any]:
    """Train a float network on polynomial fits, then quantized ones, and compare them.

    Args:
        recipe: Everything that decides the result.
    """
    own_run(state_root(), flow_run.id)
    began = time.monotonic()
    device = study_device(recipe)
    run = Run(
        PolynomialJob(recipe.samples, recipe.network, recipe.seed, recipe.evaluations, device)
    )
    pretrained = run.stage(
        "float training",
        float_key(run.job, recipe.float_training),
        float_stage,
        config=recipe.float_training,
    )
    cells = []
    for cell in cells_of(recipe.grid, recipe.lora):
        name = cell_name(cell)
        key = cell_key(run.job, cell, recipe.grid, pretrained)
        result = run.stage(
            name, key, cell_stage, cell=cell, grid=recipe.grid, pretrained=pretrained
        )
        cells.append(StudyCell(cell, _read(result.report), result.network.sha256, result.seconds))
    study = Study(recipe, _read(pretrained.report), pretrained.network.sha256, cells)
    folder = write_study(study)
    return {
        "results_dir": str(folder),
        "float_loss": study.float_report["test_loss"],
        "cells": study.rows(),
        "reading": study.readings(),
        "cached": run.cached,
        "training_seconds": pretrained.seconds + sum(cell.seconds for cell in cells),
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time(),
        "peak_rss_bytes": peak_rss_bytes(),
        "flow_run_id": str(flow_run.id),
    }


def _read(reference: ArtifactRef) -> dict[str, Any]:
    return json.loads((state_root() / reference.path).read_text(encoding="utf-8"))
