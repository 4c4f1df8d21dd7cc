"""The page of an ablation: every study with its table, picture and reading, and every cell."""

from typing import TYPE_CHECKING, Any

import yaml

from flows.reports.ablation_text import HEADER, ablation_lead, study_cells
from flows.reports.html import (
    Cell,
    Code,
    Column,
    Page,
    Section,
    Table,
    Tile,
    Words,
    environment,
    environment_section,
    number,
    page_html,
    picture,
)
from normtweak_core.ablation.config import TITLES

if TYPE_CHECKING:
    from flows.reports.ablation import Ablation, Row

CELLS = "cells.parquet"
ELSEWHERE = ("recipe_sha256", "export_sha256", "perplexity_float")  # of the lead and the table
NAMES = ("value", "verdict")  # columns of a study that hold no numbers
PICTURE = (
    "Large points are means over the seeds, bars the standard deviation, small points single "
    "seeds; the line is the mean of the base."
)


def ablation_page(ablation: "Ablation", figures: dict[str, bytes]) -> str:
    """Return the page of an ablation; equal ones give equal text.

    Args:
        ablation: Cells and recipe.
        figures: PNG of each study.
    """
    readings = ablation.readings()
    values = yaml.safe_dump(ablation.recipe.model_dump(mode="json"), sort_keys=False)
    lead = ablation_lead(ablation.recipe, ablation.source, ablation.base)
    sections = [
        _study_section(rows, readings[study], figures[study])
        for study, rows in ablation.tables().items()
    ]
    sections += [
        Section("Every cell", [_cells_table(ablation)]),
        Section("Recipe", [Code(values, "The recipe as YAML")]),
        environment_section(environment()),
    ]
    return page_html(Page("Ablation", ablation.recipe.name, lead, _tiles(ablation), sections))


def _tiles(ablation: "Ablation") -> list[Tile]:
    base = ablation.base
    ratio, kl = (base.spread(of).mean for of in (lambda one: one.ratio, lambda one: one.kl))
    cells = len({cell.recipe_sha256 for cell in ablation.cells})
    return [
        Tile("Perplexity of the base", f"{ratio:.4f}", "times float"),
        Tile("KL of the base", f"{kl:.4f}", "nats per token, from the float model"),
        Tile("Studies", str(len(ablation.tables())), f"{cells} distinct cells"),
    ]


def _study_section(rows: "list[Row]", reading: str, figure: bytes) -> Section:
    title = TITLES[rows[0].study]
    columns = [Column(name, numbers=name not in NAMES) for name in ("value", *HEADER)]
    lines = [_verdict_second(study_cells(row)) for row in rows]
    table = Table(_verdict_second(columns), lines, "Value by value")
    said = f"{reading[0].upper()}{reading[1:]}."
    return Section(title[0].upper() + title[1:], [table, Words(said), picture(figure, PICTURE)])


def _verdict_second(line: list[Any]) -> list[Any]:
    """Return a line of a study with its last column, which a narrow window hides, as the second."""
    return [line[0], line[-1], *line[1:-1]]


def _cells_table(ablation: "Ablation") -> Table:
    rows = [
        {name: value for name, value in row.items() if name not in ELSEWHERE}
        | {"problems": len(cell.problems)}
        for row, cell in zip(ablation.rows(), ablation.cells, strict=True)
    ]
    columns = [
        Column(name.replace("_", " "), numbers=not isinstance(value, str | bool))
        for name, value in rows[0].items()
    ]
    cells = [[_plain(value) for value in row.values()] for row in rows]
    return Table(columns, cells, f"What the problems were stands in {CELLS}")


def _plain(value: str | bool | float) -> Cell:
    if isinstance(value, bool):
        return Cell("yes" if value else "")
    if isinstance(value, str):
        return Cell(value)
    return number(value, "d" if isinstance(value, int) else ".4f")
