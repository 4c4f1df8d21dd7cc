"""The table and the reading of a polynomial study as text."""

from typing import TYPE_CHECKING

from flows.reports.html import Cell, number
from normtweak_core.polynomial.config import Cell as StudiedCell
from normtweak_core.polynomial.config import width_name

if TYPE_CHECKING:
    from flows.reports.polynomial import Study


def study_markdown(study: "Study") -> str:
    """Return the losses, a row per start and rate, a column per width; then the reading."""
    header = loss_header(study)
    lines = [header, ["---"] * len(header)]
    lines += [[cell.text for cell in row] for row in loss_rows(study)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    claims = "".join(
        f"* *{claim['claim']}*: **{claim['verdict']}**, {claim['figures']}; {claim['detail']}.\n"
        for claim in study.readings()
    )
    return f"{study_lead(study)}\n\n{table}\n{claims}"


def study_lead(study: "Study") -> str:
    """Return what was trained for how long, and what a loss is."""
    recipe, trained = study.recipe, study.float_report
    return (
        f"Test loss (mean square error, {recipe.samples.test} samples). Float network: "
        f"{trained['test_loss']:.5f} after {trained['curve'][-1][0]} steps "
        f"of {recipe.float_training.batch} samples; cells: "
        f"{study.cells[0].report['curve'][-1][0]} steps of "
        f"{recipe.grid.batch}, learning rate at the start of a cosine to zero."
    )


def loss_header(study: "Study") -> list[str]:
    """Return what stands above `loss_rows`."""
    return ["start", "learning rate", *map(width_name, _widths(study))]


def loss_rows(study: "Study") -> list[list[Cell]]:
    """Return the losses, a row per start and rate, the pretrained network before it first."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    for one in study.cells:
        cell, before = one.cell, ("pretrained", "not trained")
        if cell.start == "pretrained":
            found.setdefault(before, {})[cell.bits] = one.row.before
        found.setdefault(_row_name(cell), {})[cell.bits] = one.row.loss
    return [
        [*map(Cell, name), *(number(row[bits], ".5f") for bits in _widths(study))]
        for name, row in found.items()
    ]


def _widths(study: "Study") -> list[float]:
    return list(dict.fromkeys(one.cell.bits for one in study.cells))


def _row_name(cell: StudiedCell) -> tuple[str, str]:
    if cell.rank is None:
        return cell.start, f"{cell.lr:g}"
    return f"LoRA of rank {cell.rank}", f"{cell.lr:g} of a level"
