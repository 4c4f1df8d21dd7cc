"""The main flow: a float model goes in; a verified, registered low-bit version comes out."""

import logging
from typing import Any

from prefect import flow

from flows.pipeline.operated import operated
from flows.pipeline.run import BEGINNING, ENDING, RecipePipeline, Run
from flows.pipeline.run_name import run_name
from flows.recipes.kinds import QUANTIZE as KIND
from flows.recipes.quantize import Recipe
from flows.reports.blocks.rows import show_blocks
from flows.reports.quantize import Reports, rolled_back
from normtweak_core.errors import ProblemError
from normtweak_core.quantization.report import BlockReport
from normtweak_core.tweak.report import FinalTuneReport
from tasks.engine.artifacts import read_json
from tasks.engine.stage import Found
from tasks.results import BlockResult, FinalTuneResult
from tasks.stages.blocks import baseline, block, measured_stages
from tasks.stages.calibrate import calibrate
from tasks.stages.export import export_blocks
from tasks.stages.float_type import float_type
from tasks.stages.mixed.sensitivity import sensitivity, trial_widths
from tasks.stages.mixed.widths import read_allotment, widths
from tasks.stages.tune import final_tune

log = logging.getLogger(__name__)


@flow(name="quantize", flow_run_name=run_name("{recipe.name}"), validate_parameters=True)
@operated
def quantize(recipe: Recipe) -> dict[str, Any]:
    """Quantize, verify, evaluate and register a model.

    Args:
        recipe: Everything that decides the result.
    """
    return QUANTIZE.run(recipe)


def _tell_block(run: Run, found: Found, cached: bool) -> None:
    """Show the blocks so far, and heed what went wrong with the newest.

    Raises:
        ProblemError: There is a problem and the recipe allows none.
    """
    reports = [block_report(one) for one in found["block"]]
    if not cached and not run.name:
        show_blocks(reports)
    _heed(run, reports[-1].problems(), reports[-1].notes())


def _tell_tune(run: Run, found: Found, cached: bool) -> None:
    report = final_report(found["final tune"])
    if report.outcome == "rolled back":
        _heed(run, [], [rolled_back(report)])


def _heed(run: Run, problems: list[str], notes: list[str]) -> None:
    """Tell problems and notes; neither is allowed where the recipe says so."""
    for problem in problems:
        log.warning("%s", problem)
    for note in notes:
        log.info("%s", note)
    found = problems + notes
    if found and run.recipe.on_problem == "fail":
        raise ProblemError(
            f"on_problem: fail allows no problem; found: {found[0]}. "
            "Change the recipe, or set on_problem: warn"
        )


def block_report(block: BlockResult) -> BlockReport:
    """Return what happened to a block."""
    return BlockReport.model_validate(read_json(block.report))


def final_report(tuned: FinalTuneResult | None) -> FinalTuneReport | None:
    """Return what became of the final tune; None where there was none."""
    return FinalTuneReport.model_validate(read_json(tuned.report)) if tuned else None


def _report(run: Run, found: Found, **common: Any) -> Reports:
    tuned, recipe = found.get("final tune"), run.recipe
    return Reports(
        **common,
        drift=measured_stages(
            found["block"],
            found["baseline"],
            tuned,
            recipe.norm_tweak.enabled,
            recipe.block_training.enabled,
        ),
        blocks=[block_report(one) for one in found["block"]],
        baseline=[block_report(one) for one in found["baseline"]],
        final_tune=final_report(tuned),
        allotment=read_allotment(found["widths"]) if "widths" in found else None,
    )


def _rows(run: Run, found: Found) -> list[dict[str, Any]]:
    rows = []
    for one in found["block"]:
        report = block_report(one)
        rows.append(
            {
                "index": one.block,
                "cached": run.cached[f"block {one.block}"],
                "seconds": one.seconds,
                "error_before": report.drift_quantized,
                "error_after": report.drift_behind,
                "tweak_accepted": report.tweak.accepted if report.tweak else None,
            }
        )
    return rows


QUANTIZE = RecipePipeline(
    "quantize",
    (
        *(*BEGINNING, calibrate, float_type, trial_widths, sensitivity, widths, block, final_tune),
        *(export_blocks, baseline, *ENDING),
    ),
    kind=KIND,
    report=_report,
    told={"block": _tell_block, "final tune": _tell_tune},
    rows=_rows,
    data="calibrate",
)
