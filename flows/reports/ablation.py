"""What people look at after an ablation: per study a table, a figure and a sentence.

Times are those of stages when they were made, so that an ablation whose cells are all there writes
equal bytes.
"""

import base64
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flows.recipes.ablation import BASE, AblationRecipe
from flows.recipes.quantize import Recipe
from flows.reports.ablation_page import CELLS, ablation_page
from flows.reports.ablation_text import ablation_markdown, study_markdown
from flows.reports.publish import PAGE, artifact_key, publish_page, publish_table
from flows.reports.quantize import recipe_sha256
from normtweak_core.ablation.config import TITLES, Value, value_name
from normtweak_core.ablation.reading import Comparison, Measured, Spread, compare
from tasks.engine.artifacts import write_atomically
from tasks.engine.environment import state_root
from tasks.engine.progress import readable_seconds
from tasks.engine.root_layout import ABLATIONS

if TYPE_CHECKING:
    pass

TABLES, RESULTS, RECIPE = "tables.md", "results.json", "recipe.yaml"


@dataclass(frozen=True)
class Cell:
    """A finished cell of a study."""

    study: str
    value: Value
    recipe: Recipe
    recipe_sha256: str
    export_sha256: str
    metrics: dict[str, float]
    seconds: float
    blocks: int
    tweaks_kept: int
    final_tune: str  # kept, rolled back or off
    problems: list[str]  # damping or ridge raised, linears left float
    cached: bool

    @property
    def measured(self) -> Measured:
        """What is compared."""
        return Measured(
            seed=self.recipe.seed,
            ratio=self.metrics["perplexity/ratio"],
            kl=self.metrics["kl/mean"],
            agreement=self.metrics["top1_agreement"],
            seconds=self.seconds,
        )


@dataclass(frozen=True)
class Row:
    """A value of a study with all its cells."""

    study: str
    value: Value
    cells: list[Cell]
    comparison: Comparison

    @property
    def name(self) -> str:
        """What people call the value."""
        return BASE if self.study == BASE else value_name(self.study, self.value)

    def spread(self, of: Callable[[Measured], float]) -> Spread:
        """Return mean and deviation of one number over the seeds."""
        return Spread.of([of(cell.measured) for cell in self.cells])


@dataclass(frozen=True)
class Ablation:
    """Everything the reports are made of."""

    recipe: AblationRecipe
    source: str  # of the float model
    cells: list[Cell]  # by study, value and seed

    @property
    def folder(self) -> Path:
        """Where the reports go: no other recipe writes there."""
        return state_root() / ABLATIONS / self.recipe.name / recipe_sha256(self.recipe)[:12]

    @property
    def base(self) -> Row:
        """The base with all its seeds."""
        return self.table(BASE)[0]

    def table(self, study: str) -> list[Row]:
        """Return the rows of a study, one a value."""
        base = [cell for cell in self.cells if cell.study == BASE]
        of_base = {cell.recipe_sha256 for cell in base}
        measured = [cell.measured for cell in base]
        rows = []
        for value in dict.fromkeys(cell.value for cell in self.cells if cell.study == study):
            cells = [one for one in self.cells if (one.study, one.value) == (study, value)]
            same = all(cell.recipe_sha256 in of_base for cell in cells)
            comparison = compare([cell.measured for cell in cells], measured, same)
            rows.append(Row(study, value, cells, comparison))
        return rows

    def tables(self) -> dict[str, list[Row]]:
        """Return the rows of every study, the base left out."""
        studies = dict.fromkeys(cell.study for cell in self.cells if cell.study != BASE)
        return {study: self.table(study) for study in studies}

    def studies(self) -> dict[str, list[dict[str, Any]]]:
        """Return the tables as plain values."""
        return {study: [_plain(row) for row in rows] for study, rows in self.tables().items()}

    def rows(self) -> list[dict[str, Any]]:
        """Return the cells as plain values, one row a study, value and seed."""
        of_base = {cell.recipe_sha256 for cell in self.cells if cell.study == BASE}
        return [_cell_row(cell, cell.recipe_sha256 in of_base) for cell in self.cells]

    def readings(self) -> dict[str, str]:
        """Return a sentence for every study."""
        return {study: reading(rows) for study, rows in self.tables().items()}


def reading(rows: list[Row]) -> str:
    """Return what the comparisons of a study say, the best value first."""
    best = min(rows, key=lambda row: row.spread(lambda one: one.kl).mean)
    lead = f"least divergence: {best.name}"
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row.comparison.verdict, []).append(row.name)
    base = groups.pop("base", [BASE])[0]
    words = {
        "better": f"better than {base}",
        "worse": f"worse than {base}",
        "not shown": f"no difference from {base} shown",
        "not judged": "one seed, and one of the base: not judged",
    }
    said = [f"{words[verdict]}: {', '.join(names)}" for verdict, names in sorted(groups.items())]
    return "; ".join([lead, *said])


def publish_ablation(ablation: Ablation) -> Path:
    """Write the reports, show them on the page of the flow run, and return their folder.

    Raises:
        TableError: A number of a cell is not finite or out of range.
    """
    from prefect.artifacts import create_markdown_artifact

    figures = write_ablation(ablation)
    name = ablation.recipe.name
    readings = ablation.readings()
    for study, rows in ablation.tables().items():
        picture = base64.b64encode(figures[study]).decode()
        create_markdown_artifact(
            key=artifact_key(name, study),
            markdown=study_markdown(rows, readings[study])
            + f"\n![{TITLES[study]}](data:image/png;base64,{picture})\n",
            description=readings[study],
        )
    show_cells(ablation)
    publish_page(name, ablation.folder / PAGE)
    return ablation.folder


def show_cells(ablation: Ablation) -> None:
    """Show the cells, as many as there are by now, on the page of the flow run."""
    rows = [
        {key: value for key, value in row.items() if not key.endswith("sha256")}
        for row in ablation.rows()
    ]
    publish_table(ablation.recipe.name, "cells", rows, f"Every cell; base: {ablation.source}")


def write_ablation(ablation: Ablation) -> dict[str, bytes]:
    """Write tables, numbers, recipe, page and figures; return the figures by study.

    Raises:
        TableError: As `publish_ablation`.
    """
    from flows.reports.figures.ablation import Bar, study_plot
    from tasks.tables.ablation import ABLATION

    ABLATION.write(ablation.folder / CELLS, ABLATION.of(ablation.rows()))
    base = [cell.measured for cell in ablation.base.cells]
    figures = {
        study: study_plot(
            f"{ablation.source}: {TITLES[study]}",
            [Bar(row.name, [cell.measured for cell in row.cells]) for row in rows],
            base,
        )
        for study, rows in ablation.tables().items()
    }
    readings = ablation.readings()
    values = ablation.recipe.model_dump(mode="json")
    record = {
        "recipe": values,
        "base": _plain(ablation.base),
        "studies": ablation.studies(),
        "reading": readings,
        "cells": ablation.rows(),
    }
    text = ablation_markdown(
        ablation.recipe, ablation.source, ablation.base, ablation.tables(), readings
    )
    files = {
        TABLES: text.encode(),
        RESULTS: (json.dumps(record, indent=1, allow_nan=False) + "\n").encode(),
        RECIPE: yaml.safe_dump(values, sort_keys=False).encode(),
        PAGE: ablation_page(ablation, figures).encode(),
        **{f"{study}.png": figure for study, figure in figures.items()},
    }
    for name, data in files.items():
        write_atomically(ablation.folder / name, data)
    return figures


def _cell_row(cell: Cell, is_base: bool) -> dict[str, Any]:
    metrics = cell.metrics
    return {
        "study": cell.study,
        "value": str(cell.value),
        "seed": cell.recipe.seed,
        "is_base": is_base,
        "recipe_sha256": cell.recipe_sha256,
        "export_sha256": cell.export_sha256,
        "perplexity_float": metrics["perplexity/float"],
        "perplexity": metrics["perplexity/quantized"],
        "perplexity_ratio": metrics["perplexity/ratio"],
        "kl": metrics["kl/mean"],
        "top1_agreement": metrics["top1_agreement"],
        "bits_per_weight": metrics["bits_per_weight"],
        "seconds": cell.seconds,
        "blocks": cell.blocks,
        "tweaks_kept": cell.tweaks_kept,
        "final_tune": cell.final_tune,
        "problems": "; ".join(cell.problems) or "none",
    }


def _plain(row: Row) -> dict[str, Any]:
    numbers: dict[str, Callable[[Measured], float]] = {
        "perplexity_ratio": lambda one: one.ratio,
        "kl": lambda one: one.kl,
        "top1_agreement": lambda one: one.agreement,
        "seconds": lambda one: one.seconds,
    }
    spreads = {name: vars(row.spread(of)) for name, of in numbers.items()}
    comparison = {
        "perplexity": vars(row.comparison.ratio),
        "kl": vars(row.comparison.kl),
        "verdict": row.comparison.verdict,
    }
    seeds = [cell.recipe.seed for cell in row.cells]
    return {"value": row.value, "seeds": seeds, **spreads, "against_base": comparison}


def print_ablation(name: str, result: dict[str, Any]) -> None:
    """Write the summary of an ablation to standard output."""
    for label, text in ablation_summary(name, result):
        print(f"{label + ':':<12} {text}", file=sys.stdout)  # noqa: T201


def ablation_summary(name: str, result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the summary as (label, text).

    Args:
        name: Of the recipe.
        result: What the flow returned.
    """
    cached = result["cached"]
    time = (
        f"{readable_seconds(result['seconds'])}, {sum(cached.values())} of {len(cached)} cells "
        "cached"
    )
    return [
        ("ablation", name),
        *result["reading"].items(),
        ("time", time),
        ("tables", str(Path(result["results_dir"]) / TABLES)),
        ("page", str(Path(result["results_dir"]) / PAGE)),
    ]
