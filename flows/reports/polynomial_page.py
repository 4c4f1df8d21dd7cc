"""The page of a polynomial study: losses, what they say of the paper's claims, curves, fits."""

from typing import TYPE_CHECKING

import yaml

from flows.reports.html import (
    Code,
    Column,
    Page,
    Section,
    Table,
    Tile,
    environment,
    environment_section,
    number,
    page_html,
    picture,
)
from flows.reports.polynomial_text import loss_header, loss_rows, study_lead
from normtweak_core.polynomial.config import width_name

if TYPE_CHECKING:
    from flows.reports.polynomial import Study

CURVES = (
    "Test loss by step, a panel a start: the colour is the width, the kind of line the learning "
    "rate; the black line is the float network."
)
EXAMPLES = "Polynomials of the test set: the points of a sample, its fit, and what networks answer."
CLAIM = ("claim", "verdict", "figures", "detail")


def study_page(study: "Study", curves: bytes, examples: bytes) -> str:
    """Return the page of a study; equal ones give equal text.

    Args:
        study: Cells and recipe.
        curves: PNG of the losses by step.
        examples: PNG of some polynomials and their fits.
    """
    values = yaml.safe_dump(study.recipe.model_dump(mode="json"), sort_keys=False)
    claims = [tuple(claim[name] for name in CLAIM) for claim in study.readings()]
    heads = [Column(name, numbers=False) for name in CLAIM]
    sections = [
        Section("Losses", [_losses_table(study)]),
        Section("Claims of the paper", [Table(heads, claims)]),
        Section("Training curves", [picture(curves, CURVES)]),
        Section("Fits", [picture(examples, EXAMPLES)]),
        Section("Every cell", [_cells_table(study)]),
        Section("Recipe", [Code(values, "The recipe as YAML")]),
        environment_section(environment()),
    ]
    lead = study_lead(study)
    return page_html(Page("Polynomial study", study.recipe.name, lead, _tiles(study), sections))


def _tiles(study: "Study") -> list[Tile]:
    best = min(study.cells, key=lambda one: one.row.loss)
    how = f"{width_name(best.cell.bits)}, {best.cell.start}, learning rate {best.cell.lr:g}"
    return [
        Tile("Float network", f"{study.float_report['test_loss']:.5f}", "test loss"),
        Tile("Best cell", f"{best.row.loss:.5f}", how),
        Tile("Cells", str(len(study.cells))),
    ]


def _losses_table(study: "Study") -> Table:
    start, rate, *widths = loss_header(study)
    columns = [Column(start, numbers=False), Column(rate, numbers=False), *map(Column, widths)]
    return Table(columns, loss_rows(study), "Test loss by width")


def _cells_table(study: "Study") -> Table:
    columns = ["width", "start", "learning rate", "LoRA rank", "loss before", "loss", "steps"]
    rows = [
        (
            width_name(row["bits"]),
            row["start"],
            number(row["lr"], "g"),
            number(row["rank"], "d"),
            number(row["loss_before"], ".5f"),
            number(row["loss"], ".5f"),
            number(row["steps"], "d"),
        )
        for row in study.rows()
    ]
    heads = [Column(name, numbers=name not in ("width", "start")) for name in columns]
    return Table(heads, rows, "Cell by cell")
