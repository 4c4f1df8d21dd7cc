"""The ternary flow: a float model goes in, a verified, registered ternary model comes out."""

from typing import Any

from prefect import flow

from flows.pipeline.operated import operated
from flows.pipeline.run import BEGINNING, ENDING, RecipePipeline, Run
from flows.pipeline.run_name import run_name
from flows.recipes.kinds import TERNARY as KIND
from flows.recipes.ternary import TernaryRecipe
from flows.reports.ternary import TernaryReports, step_metrics
from flows.reports.training import training_facts
from tasks.engine.stage import Found
from tasks.stages.calibrate import data
from tasks.stages.float_type import ternary_float_type
from tasks.stages.training.gptq_start import gptq_start
from tasks.stages.training.surgery import surgery
from tasks.stages.training.ternary import train
from tasks.stages.training.ternary_export import export_ternary


@flow(name="ternary", flow_run_name=run_name("{recipe.name}"), validate_parameters=True)
@operated
def ternary(recipe: TernaryRecipe) -> dict[str, Any]:
    """Train a model until it lives in ternary weights; verify, evaluate and register it.

    Args:
        recipe: Everything that decides the result.
    """
    return TERNARY.run(recipe)


def _report(run: Run, found: Found, **common: Any) -> TernaryReports:
    recipe, trained = run.recipe, found["training"][-1]
    return TernaryReports(
        **common,
        num_blocks=run.job.blocks[1],
        cuts=found["surgery"].losses,
        losses=trained.losses,
        held_out={step: loss for step, loss in trained.nll.items() if step},
        best=trained.best,
        objective=trained.held_out,
        tokens=recipe.ternary.steps * recipe.ternary.batch * run.length,
    )


TERNARY = RecipePipeline(
    "ternary",
    (*BEGINNING, data, surgery, ternary_float_type, gptq_start, train, export_ternary, *ENDING),
    kind=KIND,
    report=_report,
    training=lambda found, reports: {
        "surgery": found["surgery"].losses,
        "training": training_facts(found["training"], reports),
    },
    step_values=lambda run, step: step_metrics(run.recipe, run.job.blocks[1], step),
    streams=False,
)
