"""What people look at after a ternary training: curves, summary, and the text it was trained on."""

from dataclasses import dataclass
from pathlib import Path

from flows.report_text import (
    markdown_table,
    percent,
    precision,
    result_rows,
)
from flows.ternary_recipe import TernaryRecipe
from flows.training_report import (
    PLOT,
    TrainingReports,
    publish_training_artifacts,
    write_training_reports,
)
from normtweak_core.ternary.schedule import lambdas
from normtweak_core.training.rates import Rates

CUTS = {
    "float": "float model",
    "norms_without_care": "a norm of gain one before every linear",
    "norms": "norms that take over the block norms' gains, at once",
    "step_0": "start of training (lambda as the recipe starts it)",
    "ternary": "ternary before any training",
}


@dataclass(frozen=True)
class TernaryReports(TrainingReports):
    """Everything the reports of one ternary training are made of."""

    num_blocks: int
    cuts: dict[str, float]  # loss around the surgery, see `surgery_losses`

    def lineage(self) -> dict[str, str]:
        """Return where the result comes from and what became of it; the same for equal runs."""
        return super().lineage() | {"bits": "1.58", "method": "ternary", "problems": "none"}


def publish_ternary_reports(reports: TernaryReports) -> list[Path]:
    """Write the reports under the export folder, publish them in Prefect, return the files."""
    files = _write(reports)
    publish_training_artifacts(reports, lambda plot: _summary(reports, plot))
    return files


def step_metrics(recipe: TernaryRecipe, num_blocks: int, step: int) -> dict[str, float]:
    """Return what the schedules say about a step: learning rate and lambda of every block.

    Args:
        recipe: Of the training.
        num_blocks: Blocks of the model.
        step: Optimizer steps done before it.
    """
    config = recipe.ternary
    rates = Rates(config.steps, config.lr, config.lr_second, config.weight_decay)
    values = {f"lambda/block_{i}": lam for i, lam in enumerate(lambdas(config, step, num_blocks))}
    return {"learning_rate": rates.lr_at(step), **values}


def _write(reports: TernaryReports) -> list[Path]:
    rows = [
        {"step": step + 1, "loss": loss, **step_metrics(reports.recipe, reports.num_blocks, step)}
        for step, loss in enumerate(reports.losses)
    ]
    return write_training_reports(
        reports,
        _summary(reports, PLOT),
        rows,
        {
            "title": f"{reports.recipe.name}: ternary training",
            "measured_as": "held out, all blocks ternary",
            "lambdas": [
                [row[f"lambda/block_{i}"] for i in range(reports.num_blocks)] for row in rows
            ],
        },
    )


def _summary(reports: TernaryReports, plot: str) -> str:
    recipe, config = reports.recipe, reports.recipe.ternary
    norm = {"rms": "an RMSNorm before every linear", "none": "no extra norm"}[config.norm]
    cuts = [
        (CUTS[name], f"{loss:.4f}", f"{loss - reports.cuts['float']:+.4f}")
        for name, loss in reports.cuts.items()
    ]
    results = result_rows(reports.metrics)
    schedule = f"{config.schedule}, {config.scope}, over {percent(config.warmup)} of training"
    return "\n".join(
        [
            f"# {recipe.name}",
            "",
            f"`{recipe.model.source}` in ternary weights (1.58 bits), 8-bit activations, {norm}. "
            f"Export: `{reports.export.name}`.",
            "",
            *markdown_table(("", "float", "ternary", "difference"), results, "lrrr"),
            "",
            f"On {reports.metrics['tokens']:,.0f} predicted tokens{precision(reports.metrics)}.",
            "",
            "## Surgery",
            "",
            *markdown_table(("loss on training text, nats per token", "", "change"), cuts, "lrr"),
            "",
            "## Training",
            "",
            f"{config.steps} steps of {config.batch} windows, {reports.tokens:,} tokens; objective "
            f"`{config.objective}`; lambda {schedule if config.warmup else '1 from the start'}.",
            "",
            *markdown_table(
                ("step", "loss of held-out windows, all blocks ternary"),
                [(step, f"{loss:.4f}") for step, loss in reports.held_out.items()],
                "rr",
            ),
            "",
            f"![Loss, lambda and learning rate over the steps]({plot})",
            "",
        ]
    )
