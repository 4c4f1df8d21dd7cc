"""One study as a picture: perplexity and divergence of every value, seed by seed."""

import textwrap
from dataclasses import dataclass

from matplotlib.axes import Axes

from flows.reports.figures.canvas import as_png, canvas, is_wide
from normtweak_core.ablation.reading import Measured, Spread

RATIO = "perplexity, times float"
KL = "KL from the float model, nats per token"
LABEL_WIDTH = 13  # characters: more would touch where a panel has six values


@dataclass(frozen=True)
class Bar:
    """A value of a study with its cells."""

    name: str
    cells: list[Measured]


def study_plot(title: str, bars: list[Bar], base: list[Measured]) -> bytes:
    """Return a PNG with a panel for perplexity and one for divergence; equal input, equal bytes.

    Large points are means over seeds, bars the standard deviation, small points single seeds, the
    line the mean of the base over all its seeds.

    Args:
        title: Of the picture.
        bars: Values in the order of the table, at least one.
        base: Cells of the base.
    """
    figure = canvas(10, 3.6, dpi=110)
    for axes, label, of in zip(
        figure.subplots(1, 2),
        (RATIO, KL),
        (lambda cell: cell.ratio, lambda cell: cell.kl),
        strict=True,
    ):
        values = [[of(cell) for cell in bar.cells] for bar in bars]
        _draw(axes, values, Spread.of([of(cell) for cell in base]).mean)
        axes.set(ylabel=label)
        axes.set_xticks(range(len(bars)), [label_of(bar.name) for bar in bars], fontsize="small")
    figure.suptitle(title)
    return as_png(figure)


def label_of(name: str) -> str:
    """Return the name of a value in lines that stand beside each other in a panel."""
    parts = name.replace(", ", ",\n").splitlines()
    return "\n".join(textwrap.fill(part, LABEL_WIDTH) for part in parts)


def _draw(axes: Axes, values: list[list[float]], base: float) -> None:
    for place, found in enumerate(values):
        spread = Spread.of(found)
        axes.plot([place] * len(found), found, ".", color="0.6", markersize=5)
        axes.errorbar(
            place, spread.mean, yerr=spread.deviation, fmt="o", color="C0", capsize=4, markersize=7
        )
    axes.axhline(base, color="C1", linestyle="--", linewidth=1, label="base")
    everything = [one for found in values for one in found]
    if is_wide(everything):
        axes.set_yscale("log")
    axes.margins(x=0.15)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
