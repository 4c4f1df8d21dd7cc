"""What people look at after a polynomial study: a table, the reading, two figures, a page.

Nothing in the files depends on when or how fast a study ran: equal studies write equal bytes.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.recipes.polynomial import PolynomialRecipe
from flows.reports.polynomial_page import study_page
from flows.reports.polynomial_text import study_markdown
from flows.reports.publish import PAGE, publish_page, publish_table
from flows.reports.quantize import recipe_sha256
from normtweak_core.polynomial.config import EXAMPLES, Cell, width_name
from normtweak_core.polynomial.reading import Row, readings
from tasks.engine.artifacts import write_atomically
from tasks.engine.environment import state_root
from tasks.engine.progress import readable_seconds
from tasks.engine.root_layout import POLYNOMIAL

TABLE, RESULTS, RECIPE = "table.md", "results.json", "recipe.yaml"
CURVES, EXAMPLE_FITS = "curves.png", "examples.png"
SHOWN_WIDTH = 1.58  # of the examples; the lowest width where the grid has none of it


@dataclass(frozen=True)
class StudyCell:
    """A finished cell."""

    cell: Cell
    report: dict[str, Any]
    network_sha256: str
    seconds: float

    @property
    def row(self) -> Row:
        """Its cell and losses."""
        return Row(self.cell, self.report["curve"][0][1], self.report["test_loss"])


@dataclass(frozen=True)
class Study:
    """Everything the reports of a study are made of."""

    recipe: PolynomialRecipe
    float_report: dict[str, Any]
    float_sha256: str
    cells: list[StudyCell]

    @property
    def folder(self) -> Path:
        """Where the reports go: no other recipe writes there."""
        return state_root() / POLYNOMIAL / recipe_sha256(self.recipe)[:12]

    def rows(self) -> list[dict[str, Any]]:
        """Return the cells as plain values."""
        return [
            one.cell.model_dump(mode="json")
            | {
                "loss_before": one.row.before,
                "loss": one.row.loss,
                "steps": one.report["curve"][-1][0],
                "network_sha256": one.network_sha256,
            }
            for one in self.cells
        ]

    def readings(self) -> list[dict[str, str]]:
        """Return claims, verdicts and sentences."""
        return [dataclasses.asdict(claim) for claim in readings([one.row for one in self.cells])]


def publish_study(study: Study) -> Path:
    """Write the reports, link the page from the flow run, and return their folder."""
    folder = write_study(study)
    show_cells(study)
    publish_page(study.recipe.name, folder / PAGE)
    return folder


def show_cells(study: Study) -> None:
    """Show the cells, as many as there are by now, on the page of the flow run."""
    rows = [
        {key: value for key, value in row.items() if not key.endswith("sha256")}
        for row in study.rows()
    ]
    publish_table(study.recipe.name, "cells", rows, "Loss on test examples, by cell")


def write_study(study: Study) -> Path:
    """Write table, results, recipe, figures and page, each whole; return their folder."""
    from flows.reports.figures.polynomial import Curve, curves_plot, examples_plot

    curves = [
        Curve(one.cell, [(step, loss) for step, loss in one.report["curve"]]) for one in study.cells
    ]
    record = {
        "recipe": study.recipe.model_dump(mode="json"),
        "float": {
            "curve": study.float_report["curve"],
            "loss": study.float_report["test_loss"],
            "network_sha256": study.float_sha256,
        },
        "cells": [
            row | {"curve": one.report["curve"]}
            for row, one in zip(study.rows(), study.cells, strict=True)
        ],
        "reading": study.readings(),
    }
    recipe = yaml.safe_dump(study.recipe.model_dump(mode="json"), sort_keys=False)
    figures = {
        CURVES: curves_plot(curves, study.float_report["test_loss"]),
        EXAMPLE_FITS: examples_plot(_examples(study)),
    }
    files = {
        TABLE: study_markdown(study).encode(),
        RESULTS: (json.dumps(record, indent=1) + "\n").encode(),
        RECIPE: recipe.encode(),
        PAGE: study_page(study, figures[CURVES], figures[EXAMPLE_FITS]).encode(),
        **figures,
    }
    for name, data in files.items():
        write_atomically(study.folder / name, data)
    return study.folder


def _examples(study: Study) -> list[Any]:
    from flows.reports.figures.polynomial import Example
    from normtweak_core.polynomial.data import POINTS, make_samples

    shown = shown_cell(study.cells)
    samples = make_samples(EXAMPLES, study.recipe.samples.degree, study.recipe.seed, "test")
    name = width_name(shown.cell.bits)
    found = {
        "float": study.float_report["examples_after"],
        f"{name}, not trained": shown.report["examples_before"],
        f"{name}, trained": shown.report["examples_after"],
    }
    examples = []
    for number in range(EXAMPLES):
        points, fit = samples.inputs[number].tolist(), samples.curves[number].tolist()
        outputs = {
            label: (values[number][: len(fit)], values[number][len(fit) :])
            for label, values in found.items()
        }
        examples.append(Example((points[:POINTS], points[POINTS:]), fit, outputs))
    return examples


def shown_cell(cells: list[StudyCell]) -> StudyCell:
    """Return the cell whose examples are drawn: of 1.58 bits, pretrained if any, the best one."""
    widths = {one.cell.bits for one in cells}
    width = SHOWN_WIDTH if SHOWN_WIDTH in widths else min(widths)
    return min(
        (one for one in cells if one.cell.bits == width and one.cell.rank is None),
        key=lambda one: (one.cell.start != "pretrained", one.row.loss),
    )


def print_study(name: str, result: dict[str, Any]) -> None:
    """Write the summary of a study to standard output."""
    for label, text in study_summary(name, result):
        print(f"{label + ':':<12} {text}", file=sys.stdout)  # noqa: T201


def study_summary(name: str, result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the summary as (label, text).

    Args:
        name: Of the recipe.
        result: What the flow returned.
    """
    cells, cached = result["cells"], result["cached"]
    lines = [("study", name), ("float", f"test loss {result['float_loss']:.5f}")]
    for bits in dict.fromkeys(row["bits"] for row in cells):
        best = min((row for row in cells if row["bits"] == bits), key=lambda row: row["loss"])
        how = f"lr {best['lr']:g}" if best["rank"] is None else f"LoRA of rank {best['rank']}"
        lines.append(
            (width_name(bits), f"best test loss {best['loss']:.5f} ({best['start']}, {how})")
        )
    lines += [
        ("reading", f"{c['claim']}: {c['verdict']} ({c['figures']})") for c in result["reading"]
    ]
    time = (
        f"{readable_seconds(result['seconds'])}, {sum(cached.values())} of {len(cached)} "
        "trainings cached"
    )
    folder = Path(result["results_dir"])
    return [*lines, ("time", time), ("table", str(folder / TABLE)), ("page", str(folder / PAGE))]
