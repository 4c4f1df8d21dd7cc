"""The two pictures of the study: test losses over the training, and a few polynomials."""

from dataclasses import dataclass

from matplotlib.axes import Axes

from flows.reports.figures.canvas import as_png, canvas
from normtweak_core.polynomial.config import WIDTHS, Cell, width_name

COLORS = {bits: f"C{number}" for number, bits in enumerate(WIDTHS)}
LINES = ("-", "--", ":", "-.")  # one for every learning rate, highest first
LORA_LINE = (0, (1, 1))
FLOAT_STYLE = {"color": "black", "linewidth": 1.0}


@dataclass(frozen=True)
class Curve:
    """Test losses of one cell."""

    cell: Cell
    points: list[tuple[int, float]]  # steps done, test loss


@dataclass(frozen=True)
class Example:
    """Seven points, the fit to them, and what networks make of them; all 100 ordinates long."""

    points: tuple[list[float], list[float]]
    fit: list[float]
    outputs: dict[str, tuple[list[float], list[float]]]  # abscissas and ordinates, by name


def curves_plot(curves: list[Curve], float_loss: float) -> bytes:
    """Return a PNG with a panel per start: color is the width, line style the learning rate.

    Equal input gives equal bytes.

    Args:
        curves: At least one.
        float_loss: Of the float network; a horizontal line.
    """
    starts = list(dict.fromkeys(curve.cell.start for curve in curves))
    full_rates = {curve.cell.lr for curve in curves if curve.cell.rank is None}
    styles = dict(zip(sorted(full_rates, reverse=True), LINES * len(full_rates), strict=False))
    figure = canvas(5.5 * len(starts), 5, dpi=110)
    panels = figure.subplots(1, len(starts), sharey=True, squeeze=False)[0]
    for axes, start in zip(panels, starts, strict=True):
        for curve in curves:
            if curve.cell.start == start:
                _draw_curve(axes, curve, styles)
        axes.axhline(float_loss, label="float", **FLOAT_STYLE)
        axes.set(title=f"{start} start", xlabel="steps", yscale="log")
        axes.grid(visible=True, which="both", alpha=0.3)
    panels[0].set_ylabel("test loss (mean square error)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return as_png(figure)


def _draw_curve(axes: Axes, curve: Curve, styles: dict[float, str]) -> None:
    cell = curve.cell
    rate = f"lr {cell.lr:g}" if cell.rank is None else "LoRA"
    axes.plot(
        [step for step, _ in curve.points],
        [loss for _, loss in curve.points],
        color=COLORS[cell.bits],
        linestyle=styles[cell.lr] if cell.rank is None else LORA_LINE,
        linewidth=1.5,
        marker="." if cell.rank is not None else None,
        label=f"{width_name(cell.bits)}, {rate}",
    )


def examples_plot(examples: list[Example]) -> bytes:
    """Return a PNG with a panel per example; equal input gives equal bytes.

    Args:
        examples: At least one, all with outputs of the same names.
    """
    columns = min(3, len(examples))
    rows = -(-len(examples) // columns)
    figure = canvas(3.6 * columns, 2.8 * rows, dpi=110)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes in panels[len(examples) :]:
        axes.set_axis_off()
    abscissas = [number / (len(examples[0].fit) - 1) for number in range(len(examples[0].fit))]
    for axes, example in zip(panels, examples, strict=False):
        axes.plot(abscissas, example.fit, label="fit", color="0.75", linewidth=4)
        for number, (name, (x, y)) in enumerate(example.outputs.items()):
            axes.plot(x, y, label=name, color=f"C{number}", linewidth=1.2)
        axes.plot(*example.points, "k.", label="points", markersize=7)
        axes.set(xlim=(-0.05, 1.05), ylim=(-0.3, 1.3))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return as_png(figure)
