"""The fine-tuning flow: an export goes in and is trained on, on its own grid."""

import logging
from typing import Any

from prefect import flow

from flows.checks.inputs import Ready
from flows.pipeline.measuring import FLOAT, beside_float, measured
from flows.pipeline.operated import operated
from flows.pipeline.run import BEGINNING, ENDING, RecipePipeline, Run, with_export_sizes
from flows.pipeline.run_name import run_name
from flows.recipes.finetune import FinetuneRecipe
from flows.recipes.kinds import FINETUNE as KIND
from flows.reports.finetune import FinetuneReports, show_trained_blocks
from flows.reports.training import training_facts
from normtweak_core.training.rates import Rates
from tasks.engine.environment import state_root
from tasks.engine.stage import Found
from tasks.models.starting_point import StartingPoint, export_in_root, imported_folder
from tasks.stages.calibrate import data
from tasks.stages.float_type import start_float_type
from tasks.stages.training.finetune import export_finetuned
from tasks.stages.training.finetune import finetune as train
from tasks.stages.training.finetune_blocks import finetune_block

log = logging.getLogger(__name__)

EVALUATE_START = beside_float("evaluate start", "start")


@flow(name="finetune", flow_run_name=run_name("{recipe.name}"), validate_parameters=True)
@operated
def finetune(recipe: FinetuneRecipe) -> dict[str, Any]:
    """Train an export on, block by block and end to end; verify, evaluate and register it.

    Args:
        recipe: Everything that decides the result.
    """
    return FINETUNE.run(recipe)


def _inputs(ready: Ready, writes: bool) -> dict[str, Any]:
    """Return what is trained on, unless it would first have to be copied under the state root."""
    source, root = ready.export, state_root()
    is_there = source.folder.is_relative_to(root)
    if is_there or writes or imported_folder(root, source.payload_sha256).is_dir():
        return {"start": StartingPoint(source, export_in_root(source))}
    return {}


def _tell_block(run: Run, found: Found, cached: bool) -> None:
    if not cached:
        show_trained_blocks(found["block"])


def _report(run: Run, found: Found, **common: Any) -> FinetuneReports:
    recipe, start, trained = run.recipe, found["start"], found["training"][-1]
    of_start = with_export_sizes(measured(run, found, "evaluate start", FLOAT), start.export)
    reports = FinetuneReports(
        **common,
        source=start.source,
        blocks=found.get("block", []),
        losses=trained.losses,
        held_out=trained.held_out,
        best=trained.best,
        tokens=recipe.finetune.steps * recipe.finetune.batch * run.length,
        start=of_start.metrics,
    )
    for problem in reports.problems():
        log.warning("%s", problem)
    for note in reports.notes():
        log.info("%s", note)
    return reports


def _rows(run: Run, found: Found) -> list[dict[str, Any]]:
    return [
        {
            "index": one.block,
            "cached": run.cached[f"block {one.block}"],
            "seconds": one.seconds,
            "error_before": one.distance_before,
            "error_after": one.distance_after,
            "accepted": one.accepted,
        }
        for one in found.get("block", [])
    ]


def _rate(run: Run, step: int) -> dict[str, float]:
    config = run.recipe.finetune
    return {"learning_rate": Rates(config.steps, config.scale_lr).lr_at(step)}


FINETUNE = RecipePipeline(
    "finetune",
    (
        *BEGINNING,
        data,
        start_float_type,
        finetune_block,
        train,
        export_finetuned,
        *ENDING,
        *EVALUATE_START,
    ),
    kind=KIND,
    report=_report,
    told={"block": _tell_block},
    rows=_rows,
    training=lambda found, reports: {"training": training_facts(found["training"], reports)},
    inputs=_inputs,
    step_values=_rate,
)
