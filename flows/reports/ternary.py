"""What people look at after a ternary training: curves, summary, and the text it was trained on."""

from dataclasses import dataclass
from pathlib import Path

from flows.recipes.ternary import TernaryRecipe
from flows.reports.html import Column, Section, Table
from flows.reports.training import (
    PLOT,
    TrainingReports,
    publish_training_artifacts,
    write_training_reports,
)
from flows.reports.training_page import Told
from flows.reports.words import (
    markdown_table,
    percent,
    precision,
    result_rows,
)
from normtweak_core.ternary.schedule import lambdas
from normtweak_core.training.rates import Rates

CUT_LOSS = "loss on training text, nats per token"
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
    objective: dict[int, float]  # on held-out windows, by step, the start included

    def problems(self) -> list[str]:
        """Return what a person must act on, one sentence each."""
        if self.best > 0:
            return []
        first, last = self.objective[0], self.objective[max(self.objective)]
        return [
            f"training rolled back (objective on held-out windows {first:.4g} -> {last:.4g}): the "
            "export is the ternary model before any training; lower ternary.lr, or train on more "
            "text"
        ]

    def lineage(self) -> dict[str, str]:
        """Return where the result comes from and what became of it; the same for equal runs."""
        return super().lineage() | {"bits": "1.58", "method": "ternary"}


def publish_ternary_reports(reports: TernaryReports) -> list[Path]:
    """Write the reports under the export folder, publish them in Prefect, return the files."""
    files = write_ternary_reports(reports)
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


def write_ternary_reports(reports: TernaryReports) -> list[Path]:
    """Write the reports under the export folder and return the files."""
    rows = [
        {"step": step + 1, "loss": loss, **step_metrics(reports.recipe, reports.num_blocks, step)}
        for step, loss in enumerate(reports.losses)
    ]
    return write_training_reports(
        reports,
        _summary(reports, PLOT),
        _told(reports),
        rows,
        {
            "title": f"{reports.recipe.name}: ternary training",
            "measured_as": "held out, all blocks ternary",
            "lambdas": [
                [row[f"lambda/block_{i}"] for i in range(reports.num_blocks)] for row in rows
            ],
        },
    )


def _told(reports: TernaryReports) -> Told:
    recipe, metrics = reports.recipe, reports.metrics
    columns = (Column(CUT_LOSS, numbers=False), Column("loss"), Column("change"))
    return Told(
        kind="Ternary training",
        lead=f"{recipe.model.source} {_scheme(reports)}. Export: {reports.export.name}.",
        columns=("", "float", "ternary", "difference"),
        results=result_rows(metrics),
        models=[
            ("float", reports.float_bytes, metrics, "perplexity/float"),
            ("ternary", metrics["size_bytes"], metrics, "perplexity/quantized"),
        ],
        own=[Section("Surgery", [Table(columns, _cut_rows(reports), sorts=False)])],
        training=_training(reports).replace("`", ""),
        held_out="loss of held-out windows, all blocks ternary",
    )


def _scheme(reports: TernaryReports) -> str:
    norm = {"rms": "an RMSNorm before every linear", "none": "no extra norm"}
    return f"in ternary weights (1.58 bits), 8-bit activations, {norm[reports.recipe.ternary.norm]}"


def _cut_rows(reports: TernaryReports) -> list[tuple[str, str, str]]:
    return [
        (CUTS[name], f"{loss:.4f}", f"{loss - reports.cuts['float']:+.4f}")
        for name, loss in reports.cuts.items()
    ]


def _training(reports: TernaryReports) -> str:
    config = reports.recipe.ternary
    schedule = f"{config.schedule}, {config.scope}, over {percent(config.warmup)} of training"
    return (
        f"{config.steps} steps of {config.batch} windows, {reports.tokens:,} tokens; objective "
        f"`{config.objective}` in {config.dtype}; lambda "
        f"{schedule if config.warmup else '1 from the start'}. {reports.kept}"
    )


def _summary(reports: TernaryReports, plot: str) -> str:
    recipe, results = reports.recipe, result_rows(reports.metrics)
    return "\n".join(
        [
            f"# {recipe.name}",
            "",
            f"`{recipe.model.source}` {_scheme(reports)}. Export: `{reports.export.name}`.",
            "",
            *markdown_table(("", "float", "ternary", "difference"), results, "lrrr"),
            "",
            f"On {reports.metrics['tokens']:,.0f} predicted tokens{precision(reports.metrics)}.",
            "",
            f"Float type: {reports.float_type.in_words()}.",
            "",
            "## Surgery",
            "",
            *markdown_table((CUT_LOSS, "", "change"), _cut_rows(reports), "lrr"),
            "",
            "## Training",
            "",
            _training(reports),
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
