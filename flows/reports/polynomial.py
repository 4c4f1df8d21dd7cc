"""What is told of a polynomial study: losses, what they say of the paper's claims, curves, fits.

Nothing in the files depends on when or how fast a study ran: equal studies write equal bytes.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.recipes.file import recipe_sha256, recipe_yaml
from flows.recipes.polynomial import PolynomialRecipe
from flows.reports.document import Cell as Shown
from flows.reports.document import (
    Document,
    Drawing,
    Section,
    Table,
    Tile,
    number,
    recipe_sections,
    rows_table,
)
from flows.reports.figures.polynomial import Curve, Example, curves_plot, examples_plot
from flows.reports.publish import Report, Rows, publish_table, without_hashes
from normtweak_core.lazy import lazy
from normtweak_core.polynomial.config import EXAMPLES, Cell, width_name
from normtweak_core.polynomial.reading import Row, readings
from tasks.engine.environment import state_root
from tasks.engine.root_layout import POLYNOMIAL

data = lazy("normtweak_core.polynomial.data")  # imports torch

TABLE, RESULTS, RECIPE = "table.md", "results.json", "recipe.yaml"
CURVES, EXAMPLE_FITS = "curves.png", "examples.png"
CLAIM = ("claim", "verdict", "figures", "detail")
OF_CURVES = (
    "Test loss by step, a panel a start: the colour is the width, the kind of line the learning "
    "rate; the black line is the float network."
)
OF_EXAMPLES = (
    "Polynomials of the test set: the points of a sample, its fit, and what networks answer."
)
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

    def report(self) -> Report:
        """Return the study as it is written and shown."""
        claims = self.readings()
        table = Table(CLAIM, [tuple(claim[name] for name in CLAIM) for claim in claims])
        curves = [
            Curve(one.cell, [(step, loss) for step, loss in one.report["curve"]])
            for one in self.cells
        ]
        pictures = [
            Drawing(
                OF_CURVES, png=curves_plot(curves, self.float_report["test_loss"]), file=CURVES
            ),
            Drawing(OF_EXAMPLES, png=examples_plot(_examples(self)), file=EXAMPLE_FITS),
        ]
        document = Document(
            "Polynomial study",
            self.recipe.name,
            _lead(self),
            _tiles(self),
            [
                Section("Losses", [_losses_table(self)]),
                Section("Claims of the paper", [table]),
                Section("Training curves", pictures[:1]),
                Section("Fits", pictures[1:]),
                Section("Every cell", [_cells_table(self)]),
                *recipe_sections(recipe_yaml(self.recipe)),
            ],
        )
        record = {
            "recipe": self.recipe.model_dump(mode="json"),
            "float": {
                "curve": self.float_report["curve"],
                "loss": self.float_report["test_loss"],
                "network_sha256": self.float_sha256,
            },
            "cells": [
                row | {"curve": one.report["curve"]}
                for row, one in zip(self.rows(), self.cells, strict=True)
            ],
            "reading": claims,
        }
        return Report(
            name=self.recipe.name,
            folder=self.folder,
            document=document,
            data={
                RESULTS: json.dumps(record, indent=1) + "\n",
                RECIPE: recipe_yaml(self.recipe),
            },
            texts={TABLE: document.only("Losses", "Claims of the paper")},
            tables={"cells": self.shown_cells()},
        )

    def shown_cells(self) -> tuple[Rows, str]:
        """Return the cells, as many as there are by now, and what they are."""
        return without_hashes(self.rows()), "Loss on test examples, by cell"


def show_cells(study: Study) -> None:
    """Show the cells, as many as there are by now, on the page of the flow run."""
    publish_table(study.recipe.name, "cells", *study.shown_cells())


def _tiles(study: Study) -> list[Tile]:
    best = min(study.cells, key=lambda one: one.row.loss)
    how = f"{width_name(best.cell.bits)}, {best.cell.start}, learning rate {best.cell.lr:g}"
    return [
        Tile("Float network", f"{study.float_report['test_loss']:.5f}", "test loss"),
        Tile("Best cell", f"{best.row.loss:.5f}", how),
        Tile("Cells", str(len(study.cells))),
    ]


def _lead(study: Study) -> str:
    """Return what was trained for how long, and what a loss is."""
    recipe, trained = study.recipe, study.float_report
    return (
        f"Test loss (mean square error, {recipe.samples.test} samples). Float network: "
        f"{trained['test_loss']:.5f} after {trained['curve'][-1][0]} steps "
        f"of {recipe.float_training.batch} samples; cells: "
        f"{study.cells[0].report['curve'][-1][0]} steps of "
        f"{recipe.grid.batch}, learning rate at the start of a cosine to zero."
    )


def _losses_table(study: Study) -> Table:
    """Return the losses, a row per start and rate, the pretrained network before it first."""
    widths = list(dict.fromkeys(one.cell.bits for one in study.cells))
    found: dict[tuple[str, str], dict[float, float]] = {}
    for one in study.cells:
        cell, before = one.cell, ("pretrained", "not trained")
        if cell.start == "pretrained":
            found.setdefault(before, {})[cell.bits] = one.row.before
        found.setdefault(_row_name(cell), {})[cell.bits] = one.row.loss
    heads = ["start", "learning rate", *map(width_name, widths)]
    rows: list[list[Shown | str]] = [
        [*name, *(number(row[bits], ".5f") for bits in widths)] for name, row in found.items()
    ]
    return Table(heads, rows, "Test loss by width")


def _row_name(cell: Cell) -> tuple[str, str]:
    if cell.rank is None:
        return cell.start, f"{cell.lr:g}"
    return f"LoRA of rank {cell.rank}", f"{cell.lr:g} of a level"


def _cells_table(study: Study) -> Table:
    rows = [
        {
            "width": width_name(row["bits"]),
            "start": row["start"],
            "learning rate": row["lr"],
            "LoRA rank": row["rank"],
            "loss before": row["loss_before"],
            "loss": row["loss"],
            "steps": row["steps"],
        }
        for row in study.rows()
    ]
    forms = {"learning rate": "g", "loss before": ".5f", "loss": ".5f"}
    return rows_table(rows, "Cell by cell", forms)


def _examples(study: Study) -> list[Example]:
    shown = shown_cell(study.cells)
    samples = data.make_samples(EXAMPLES, study.recipe.samples.degree, study.recipe.seed, "test")
    name = width_name(shown.cell.bits)
    found = {
        "float": study.float_report["examples_after"],
        f"{name}, not trained": shown.report["examples_before"],
        f"{name}, trained": shown.report["examples_after"],
    }
    examples = []
    for index in range(EXAMPLES):
        points, fit = samples.inputs[index].tolist(), samples.curves[index].tolist()
        outputs = {
            label: (values[index][: len(fit)], values[index][len(fit) :])
            for label, values in found.items()
        }
        examples.append(Example((points[: data.POINTS], points[data.POINTS :]), fit, outputs))
    return examples


def shown_cell(cells: list[StudyCell]) -> StudyCell:
    """Return the cell whose examples are drawn: of 1.58 bits, pretrained if any, the best one."""
    widths = {one.cell.bits for one in cells}
    width = SHOWN_WIDTH if SHOWN_WIDTH in widths else min(widths)
    return min(
        (one for one in cells if one.cell.bits == width and one.cell.rank is None),
        key=lambda one: (one.cell.start != "pretrained", one.row.loss),
    )
