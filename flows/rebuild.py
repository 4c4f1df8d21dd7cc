"""The rebuild flow: the recipe of a registered version again, up to its export."""

from typing import Any

from prefect import flow

from flows.finetune import FINETUNE
from flows.pipeline.operated import operated
from flows.pipeline.run_name import run_name
from flows.quantize import QUANTIZE
from flows.recipes.finetune import FinetuneRecipe
from flows.recipes.kinds import kind_of
from flows.recipes.quantize import Recipe
from flows.recipes.ternary import TernaryRecipe
from flows.ternary import TERNARY
from tasks.engine.environment import state_root
from tasks.results import FloatType

PIPELINES = {one.name: one for one in (QUANTIZE, TERNARY, FINETUNE)}


@flow(
    name="rebuild", flow_run_name=run_name("{uri}"), validate_parameters=True, persist_result=False
)
@operated
def rebuild(
    uri: str,
    recipe: Recipe | TernaryRecipe | FinetuneRecipe,
    revisions: dict[str, str],
    float_type: FloatType | None = None,
) -> dict[str, Any]:
    """Make the export of a version again; evaluate and register nothing.

    Args:
        uri: The version.
        recipe: Its recipe.
        revisions: Commits of the hub data sets it read.
        float_type: Of its export; None: it is found out again.
    """
    pipeline = PIPELINES[kind_of(recipe.model_dump()).name]
    run, found = pipeline.rebuild(recipe, revisions, float_type)
    export = found["export"]
    return {
        "export_dir": str(state_root() / export.folder),
        "export_sha256": export.export_sha256,
        "calibration_sha256": found[pipeline.data].windows.sha256,
        "cached": run.cached,
    }
