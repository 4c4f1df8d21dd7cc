"""What is told of a training, whichever it was: curves, what was kept, and what every run tells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flows.reports.document import Section, Table, number
from flows.reports.figures.canvas import drawing
from flows.reports.figures.training import training_figure
from flows.reports.publish import Report
from flows.reports.run import RunReports, Told, run_report

CURVES, PLOT = "training.csv", "training.png"
OF_CURVES = "Training curves"


@dataclass(frozen=True)
class TrainingReports(RunReports):
    """What the reports of every training are made of."""

    losses: list[float]
    held_out: dict[int, float]  # on windows that are not trained on, by step
    best: int  # step whose weights these windows liked best, and which are exported
    tokens: int  # trained on

    @property
    def kept(self) -> str:
        """A sentence on whose weights are exported."""
        if self.best == 0:
            return "Rolled back: held-out windows like the weights of the start best."
        return f"Exported are the weights after step {self.best}, which held-out windows like best."

    def series(self) -> dict[str, dict[int, float]]:
        """Return the losses by optimizer step."""
        losses = {step + 1: loss for step, loss in enumerate(self.losses)}
        return {"train/loss": losses, "train/held_out": dict(self.held_out)}

    def lineage(self) -> dict[str, str]:
        """Return where the result comes from and what became of it; the same for equal runs."""
        return super().lineage() | {"training_tokens": str(self.tokens)}


def training_facts(segments: list[Any], reports: TrainingReports) -> dict[str, Any]:
    """Return what ``--result`` tells of a training."""
    return {
        "steps": segments[-1].until,
        "tokens": reports.tokens,
        "seconds": segments[-1].seconds,
        "held_out": {str(step): loss for step, loss in reports.held_out.items()},
        "best_step": reports.best,
    }


def training_report(
    reports: TrainingReports,
    rows: list[dict[str, float]],
    section: Section,
    training: str,
    measured_as: str,
    lambdas: list[list[float]] | None = None,
    **told: Any,
) -> Report:
    """Return a training as it is written and shown.

    Args:
        reports: What it is made of.
        rows: Curves, a row a step.
        section: The one that only this kind of training has.
        training: A sentence on how it was trained.
        measured_as: What the held-out loss is called.
        lambdas: As `training_figure` takes them.
        told: What this kind of training says beside, as `Told` takes it.
    """
    title = f"{reports.recipe.name}: {told['kind'].lower()}"
    curves = _curves_section(reports, rows, training, measured_as, lambdas, title)
    lines = [",".join(rows[0])]
    lines += [",".join(f"{value:.8g}" for value in row.values()) for row in rows]
    return run_report(
        reports,
        Told(
            **told,
            stages=[("float type", reports.float_type.in_words())],
            sections=[section, curves],
            summary=[section.title, curves.title],
            text="Training text",
            text_name="data",
        ),
        {CURVES: "\n".join(lines) + "\n"},
    )


def _curves_section(
    reports: TrainingReports,
    rows: Sequence[dict[str, float]],
    training: str,
    measured_as: str,
    lambdas: list[list[float]] | None,
    title: str,
) -> Section:
    rates = [row["learning_rate"] for row in rows]
    caption = "Loss of every step and its running mean, held-out loss, learning rate"
    caption += ", and lambda of every block." if lambdas else "."
    picture = drawing(
        training_figure(reports.losses, rates, reports.held_out, measured_as, lambdas),
        "training",
        f"{training} {reports.kept} {caption}",
        PLOT,
        title,
    )
    held_out = [(number(step, "d"), number(loss)) for step, loss in reports.held_out.items()]
    table = Table(("step", measured_as), held_out, "Held-out loss by step")
    return Section(OF_CURVES, [picture, table])
