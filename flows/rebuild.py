"""The rebuild flow: the recipe of a registered version again, up to its export."""

import time
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.checks.finetune import finetune_preflight
from flows.finetune import make_finetuned
from flows.pipeline.operated import operated
from flows.pipeline.run import Run
from flows.pipeline.run_name import run_name
from flows.quantize import make_quantized
from flows.recipes.finetune import FinetuneRecipe
from flows.recipes.quantize import Recipe
from flows.recipes.ternary import TernaryRecipe
from flows.ternary import make_ternary
from tasks.engine.environment import state_root
from tasks.models.job import open_job
from tasks.models.starting_point import StartingPoint, export_in_root


@flow(
    name="rebuild", flow_run_name=run_name("{uri}"), validate_parameters=True, persist_result=False
)
@operated
def rebuild(
    uri: str, recipe: Recipe | TernaryRecipe | FinetuneRecipe, revisions: dict[str, str]
) -> dict[str, Any]:
    """Make the export of a version again; evaluate and register nothing.

    Args:
        uri: The version.
        recipe: Its recipe.
        revisions: Commits of the hub data sets it read.
    """
    began = time.monotonic()
    if isinstance(recipe, FinetuneRecipe):
        ready = finetune_preflight(recipe, state_root(), evaluates=False)
        job = open_job(ready.float_model, recipe.seed, revisions)
        run = Run(began, job=job, is_rebuild=True)
        start = StartingPoint(ready.export, export_in_root(ready.export))
        export = make_finetuned(run, recipe, start).export
    else:
        job = open_job(recipe.model, recipe.seed, revisions)
        run = Run(began, job=job, is_rebuild=True)
        make = make_ternary if isinstance(recipe, TernaryRecipe) else make_quantized
        export = make(run, recipe).export
    assert run.data is not None
    return {
        "export_dir": str(state_root() / export.folder),
        "export_sha256": export.export_sha256,
        "calibration_sha256": run.data.result.windows.sha256,
        "cached": run.cached,
        "seconds": time.monotonic() - began,
        "flow_run_id": str(flow_run.id),
    }
