"""The page of a training, whichever it was: result, curves, text, everything it rests on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.reports.html import Column, Page, Section, Table, drawing, number, page_html
from flows.reports.run import (
    closing_sections,
    outcome_section,
    result_section,
    result_tiles,
    size_section,
    text_section,
)

if TYPE_CHECKING:
    from flows.reports.training import TrainingReports


@dataclass(frozen=True)
class Told:
    """What the page of one kind of training says that those of others do not."""

    kind: str
    lead: str
    columns: tuple[str, ...]  # of the result
    results: Sequence[tuple[str, ...]]
    models: Sequence[tuple[str, float, dict[str, float], str]]  # as `size_section`
    own: Sequence[Section]
    training: str  # a sentence on how it was trained
    held_out: str  # what the held-out loss is called
    after_result: str = ""


def training_page(
    reports: "TrainingReports", told: Told, rows: list[dict[str, float]], plot: dict[str, Any]
) -> str:
    """Return the page of a training; equal runs give equal text.

    Args:
        reports: What it is made of.
        told: What this kind of training adds.
        rows: Curves, a row a step.
        plot: Further arguments of `training_figure`; its title is not shown.
    """
    from flows.reports.figures.training import training_figure

    figure = training_figure(
        reports.losses,
        [row["learning_rate"] for row in rows],
        reports.held_out,
        **plot | {"title": ""},
    )
    caption = "Loss of every step and its running mean, held-out loss, learning rate"
    caption += ", and lambda of every block." if plot.get("lambdas") else "."
    held_out = [(number(step, "d"), number(loss)) for step, loss in reports.held_out.items()]
    curves = Section(
        "Training curves",
        [
            drawing(figure, "training", f"{told.training} {caption}"),
            Table((Column("step"), Column(told.held_out)), held_out, "Held-out loss by step"),
        ],
    )
    sections = [
        result_section(reports, told.columns, told.results, told.after_result),
        size_section(told.models),
        outcome_section(reports, [("float type", reports.float_type.in_words())]),
        *told.own,
        curves,
        text_section(reports.quality, reports.recipe.seed, "Training text"),
        *closing_sections(reports),
    ]
    return page_html(
        Page(told.kind, reports.recipe.name, told.lead, result_tiles(reports), sections)
    )
