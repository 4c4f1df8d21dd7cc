"""What is told of an ablation: per study a table, a picture and a sentence, and every cell.

Times are those of stages when they were made, so that an ablation whose cells are all there writes
equal bytes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.recipes.ablation import BASE, AblationRecipe
from flows.recipes.file import recipe_sha256, recipe_yaml
from flows.recipes.quantize import Recipe
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
from flows.reports.figures.ablation import Bar, study_plot
from flows.reports.publish import Report, Rows, publish_table, without_hashes
from normtweak_core.ablation.config import TITLES, Value, value_name
from normtweak_core.ablation.reading import Comparison, Measured, Spread, compare
from tasks.engine.environment import state_root
from tasks.engine.root_layout import ABLATIONS
from tasks.tables.ablation import ABLATION

CELLS, TABLES, RESULTS, RECIPE = "cells.parquet", "tables.md", "results.json", "recipe.yaml"
ELSEWHERE = ("recipe_sha256", "export_sha256", "perplexity_float")  # of the lead and the table
# Of a study; the verdict stands where a narrow window does not hide it.
COLUMNS = (
    "value",
    "verdict",
    "seeds",
    "perplexity, times float",
    "against the base",
    "KL",
    "KL against the base",
    "top-1 agreement",
    "bits/weight",
    "seconds",
)
HOW_TO_READ = (
    "Numbers are means ± standard deviation over seeds; differences are taken seed by seed, and "
    "verdicts are on KL: with several seeds by a paired t interval of 95 %, with one seed by the "
    "range of the base over its seeds. Seconds: calibration, blocks and final tune, as if a cell "
    "shared nothing."
)
OF_PICTURE = (
    "Large points are means over the seeds, bars the standard deviation, small points single "
    "seeds; the line is the mean of the base."
)


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

    def spread(self, name: str) -> Spread:
        """Return mean and deviation of a field of `Measured` over the seeds."""
        return Spread.of([getattr(cell.measured, name) for cell in self.cells])


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

    def report(self) -> Report:
        """Return the ablation as it is written and shown.

        Writing raises:
            TableError: A number of a cell is not finite or out of range.
        """
        readings, tables = self.readings(), self.tables()
        base = [cell.measured for cell in self.base.cells]
        studies = {
            study: _study_section(self.source, rows, readings[study], base)
            for study, rows in tables.items()
        }
        document = Document(
            "Ablation",
            self.recipe.name,
            _lead(self),
            _tiles(self),
            [
                *studies.values(),
                Section("Every cell", [_cells_table(self)]),
                *recipe_sections(recipe_yaml(self.recipe)),
            ],
        )
        record = {
            "recipe": self.recipe.model_dump(mode="json"),
            "base": _plain(self.base),
            "studies": self.studies(),
            "reading": readings,
            "cells": self.rows(),
        }
        return Report(
            name=self.recipe.name,
            folder=self.folder,
            document=document,
            data={
                CELLS: (ABLATION, ABLATION.of(self.rows())),
                RESULTS: json.dumps(record, indent=1, allow_nan=False) + "\n",
                RECIPE: recipe_yaml(self.recipe),
            },
            texts={TABLES: document.only(*(section.title for section in studies.values()))},
            shown={
                study: (document.only(section.title), readings[study])
                for study, section in studies.items()
            },
            tables={"cells": self.shown_cells()},
        )

    def shown_cells(self) -> tuple[Rows, str]:
        """Return the cells, as many as there are by now, and what they are."""
        return without_hashes(self.rows()), f"Every cell; base: {self.source}"


def reading(rows: list[Row]) -> str:
    """Return what the comparisons of a study say, the best value first."""
    best = min(rows, key=lambda row: row.spread("kl").mean)
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


def show_cells(ablation: Ablation) -> None:
    """Show the cells, as many as there are by now, on the page of the flow run."""
    publish_table(ablation.recipe.name, "cells", *ablation.shown_cells())


def _tiles(ablation: Ablation) -> list[Tile]:
    ratio, kl = (ablation.base.spread(name).mean for name in ("ratio", "kl"))
    cells = len({cell.recipe_sha256 for cell in ablation.cells})
    return [
        Tile("Perplexity of the base", f"{ratio:.4f}", "times float"),
        Tile("KL of the base", f"{kl:.4f}", "nats per token, from the float model"),
        Tile("Studies", str(len(ablation.tables())), f"{cells} distinct cells"),
    ]


def _lead(ablation: Ablation) -> str:
    """Return what the base is and how the numbers are to be read."""
    recipe, base = ablation.recipe, ablation.base
    metrics = base.cells[0].metrics
    q, tweak = recipe.quantization, recipe.norm_tweak
    group = "one scale a row" if q.group_size is None else f"groups of {q.group_size}"
    calibration = recipe.calibration
    length = "" if calibration.length is None else f" of {calibration.length} tokens"
    reads = f", {q.activation_bits}-bit activations" if q.activation_bits else ""
    stages = [q.method.upper()]
    stages += [f"propagation {q.propagation.alpha:g}"] if q.propagation.alpha else []
    if tweak.enabled:
        stages.append(
            f"norm tweak ({tweak.loss} loss, {tweak.target} target, {tweak.schedule} schedule, lr "
            f"{tweak.lr:g}, {tweak.iterations} {'pass' if tweak.iterations == 1 else 'passes'})"
        )
    stages += [f"final tune of {recipe.final_tune.steps} steps"] * recipe.final_tune.enabled
    ratio, kl = (_spread(base.spread(name)).text for name in ("ratio", "kl"))
    seeds = f"{len(base.cells)} seed" + "s" * (len(base.cells) > 1)
    return (
        f"Base: {ablation.source}, {q.in_words} in {group}{reads}; {', '.join(stages)}; "
        f"{calibration.samples} windows{length}, source {calibration.source}. Float perplexity "
        f"{metrics['perplexity/float']:.3f} on {metrics['tokens']:.0f} tokens; base over {seeds}: "
        f"{ratio} times float, KL {kl}. {HOW_TO_READ}"
    )


def _study_section(source: str, rows: list[Row], said: str, base: list[Measured]) -> Section:
    title = TITLES[rows[0].study]
    table = Table(COLUMNS, [_study_cells(row) for row in rows], "Value by value")
    bars = [Bar(row.name, [cell.measured for cell in row.cells]) for row in rows]
    png = study_plot(f"{source}: {title}", bars, base)
    picture = Drawing(OF_PICTURE, png=png, file=f"{rows[0].study}.png")
    return Section(title[0].upper() + title[1:], [table, f"{said[0].upper()}{said[1:]}.", picture])


def _study_cells(row: Row) -> list[Shown | str]:
    """Return the line of a value below `COLUMNS`."""
    comparison = row.comparison
    same = comparison.verdict == "base"
    return [
        row.name,
        comparison.verdict,
        number(len(row.cells), "d"),
        _spread(row.spread("ratio")),
        "" if same else _spread(comparison.ratio, "+.2%"),
        _spread(row.spread("kl")),
        "" if same else _spread(comparison.kl, "+.4f"),
        _spread(row.spread("agreement"), ".1%"),
        number(row.cells[0].metrics["bits_per_weight"], ".2f"),
        number(row.spread("seconds").mean, ".0f"),
    ]


def _spread(spread: Spread, form: str = ".4f") -> Shown:
    return number(spread.mean, form, spread.deviation)


def _cells_table(ablation: Ablation) -> Table:
    rows = [
        {name: value for name, value in row.items() if name not in ELSEWHERE}
        | {"problems": len(cell.problems)}
        for row, cell in zip(ablation.rows(), ablation.cells, strict=True)
    ]
    return rows_table(rows, f"What the problems were stands in {CELLS}")


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
    fields = {
        "perplexity_ratio": "ratio",
        "kl": "kl",
        "top1_agreement": "agreement",
        "seconds": "seconds",
    }
    spreads = {name: vars(row.spread(field)) for name, field in fields.items()}
    comparison = {
        "perplexity": vars(row.comparison.ratio),
        "kl": vars(row.comparison.kl),
        "verdict": row.comparison.verdict,
    }
    seeds = [cell.recipe.seed for cell in row.cells]
    return {"value": row.value, "seeds": seeds, **spreads, "against_base": comparison}
