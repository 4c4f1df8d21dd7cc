"""Reports of a training, whichever it was: curves, their picture, summary, data, lineage."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flows.reports.publish import PAGE, artifact_key, publish_page
from flows.reports.quantize import FOLDER, recipe_sha256, remarks
from flows.reports.words import calibration_markdown, percent
from tasks.engine.artifacts import write_atomically
from tasks.results import FloatType

if TYPE_CHECKING:
    from flows.reports.training_page import Told

CURVES, PLOT = "training.csv", "training.png"


@dataclass(frozen=True)
class TrainingReports:
    """What the reports of every training are made of."""

    recipe: Any
    losses: list[float]
    held_out: dict[int, float]  # on windows that are not trained on, by step
    best: int  # step whose weights these windows liked best, and which are exported
    tokens: int  # trained on
    quality: dict[str, Any]  # of the text
    metrics: dict[str, float]
    origin: dict[str, str]
    export: Path
    float_type: FloatType
    float_bytes: int  # size of the float model's files

    @property
    def folder(self) -> Path:
        """Where the reports go: no other recipe that leads to this export writes there."""
        return self.export / FOLDER / recipe_sha256(self.recipe)[:12]

    @property
    def kept(self) -> str:
        """A sentence on whose weights are exported."""
        if self.best == 0:
            return "Rolled back: held-out windows like the weights of the start best."
        return f"Exported are the weights after step {self.best}, which held-out windows like best."

    def problems(self) -> list[str]:
        """Return what a person must act on, one sentence each."""
        return []

    def notes(self) -> list[str]:
        """Return what was undone because it did not help, one sentence each."""
        return []

    def series(self) -> dict[str, dict[int, float]]:
        """Return the losses by optimizer step."""
        losses = {step + 1: loss for step, loss in enumerate(self.losses)}
        return {"train/loss": losses, "train/held_out": dict(self.held_out)}

    def lineage(self) -> dict[str, str]:
        """Return where the result comes from and what became of it; the same for equal runs."""
        return self.origin | {
            **self.float_type.tags(),
            "recipe_sha256": recipe_sha256(self.recipe),
            "training_tokens": str(self.tokens),
            **remarks(self.problems(), self.notes()),
        }


def write_training_reports(
    reports: TrainingReports,
    summary: str,
    told: "Told",
    rows: list[dict[str, float]],
    plot: dict[str, Any],
) -> list[Path]:
    """Write the reports under the export folder and return the files.

    Args:
        reports: What they are made of.
        summary: The summary, with the picture beside it.
        told: What the page says of this kind of training.
        rows: Curves, a row a step.
        plot: Further arguments of `training_plot`.
    """
    from flows.reports.figures.training import training_plot
    from flows.reports.training_page import training_page

    folder = reports.folder
    lines = [",".join(rows[0])] + [
        ",".join(f"{value:.8g}" for value in row.values()) for row in rows
    ]
    everything = {
        "data.md": calibration_markdown(reports.recipe, reports.quality),
        CURVES: "\n".join(lines) + "\n",
        "summary.md": summary,
        "recipe.yaml": yaml.safe_dump(reports.recipe.model_dump(mode="json"), sort_keys=False),
        "lineage.json": json.dumps(reports.lineage(), indent=1, sort_keys=True) + "\n",
        PAGE: training_page(reports, told, rows, plot),
    }
    for name, text in everything.items():
        write_atomically(folder / name, text.encode())
    rates = [row["learning_rate"] for row in rows]
    write_atomically(folder / PLOT, training_plot(reports.losses, rates, reports.held_out, **plot))
    return [folder / name for name in (*everything, PLOT)]


def publish_training_artifacts(reports: TrainingReports, summary: Callable[[str], str]) -> None:
    """Show the written reports on the page of the current flow run.

    Args:
        reports: As for `write_training_reports`.
        summary: Returns the summary with a picture at the address it is given.
    """
    from prefect.artifacts import create_markdown_artifact

    name, folder = reports.recipe.name, reports.folder
    create_markdown_artifact(
        key=artifact_key(name, "data"),
        markdown=(folder / "data.md").read_text(encoding="utf-8"),
        description=f"Training text: {reports.quality['verdict']}",
    )
    publish_page(name, folder / PAGE)
    picture = base64.b64encode((folder / PLOT).read_bytes()).decode()
    change = percent(reports.metrics["perplexity/ratio"] - 1, signed=True)
    create_markdown_artifact(
        key=artifact_key(name, "summary"),
        markdown=summary(f"data:image/png;base64,{picture}"),
        description=f"Perplexity {change} against the float model",
    )
