"""Reports of a training, whichever it was: curves, their picture, summary, data, lineage."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from flows.report import artifact_key
from flows.report_text import percent
from tasks.artifacts import write_atomically

CURVES, PLOT = "training.csv", "training.png"


def write_training_reports(
    reports: Any,
    texts: dict[str, str],
    summary: str,
    rows: list[dict[str, float]],
    plot: dict[str, Any],
) -> list[Path]:
    """Write the reports under the export folder and return the files.

    Args:
        reports: What they are made of: recipe, folder, lineage, losses, held_out.
        texts: Contents by file name, but for those that every training has.
        summary: The summary, with the picture beside it.
        rows: Curves, a row a step.
        plot: Further arguments of `training_plot`.
    """
    from normtweak_core.training.plot import training_plot

    folder = reports.folder
    lines = [",".join(rows[0])] + [
        ",".join(f"{value:.8g}" for value in row.values()) for row in rows
    ]
    everything = texts | {
        CURVES: "\n".join(lines) + "\n",
        "summary.md": summary,
        "recipe.yaml": yaml.safe_dump(reports.recipe.model_dump(mode="json"), sort_keys=False),
        "lineage.json": json.dumps(reports.lineage(), indent=1, sort_keys=True) + "\n",
    }
    for name, text in everything.items():
        write_atomically(folder / name, text.encode())
    rates = [row["learning_rate"] for row in rows]
    write_atomically(folder / PLOT, training_plot(reports.losses, rates, reports.held_out, **plot))
    return [folder / name for name in (*everything, PLOT)]


def publish_training_artifacts(reports: Any, summary: Callable[[str], str]) -> None:
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
    picture = base64.b64encode((folder / PLOT).read_bytes()).decode()
    change = percent(reports.metrics["perplexity/ratio"] - 1, signed=True)
    create_markdown_artifact(
        key=artifact_key(name, "summary"),
        markdown=summary(f"data:image/png;base64,{picture}"),
        description=f"Perplexity {change} against the float model",
    )
