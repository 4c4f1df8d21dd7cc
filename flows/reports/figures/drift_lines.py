"""The drift of the quantized stream, block by block, as a picture."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from normtweak_core.errors import InputError

LOG_FROM = 30  # largest over smallest value from which a linear axis hides the small ones
RELATIVE_DRIFT = r"$\|x_q - x_f\| \; / \; \|x_f\|$"


def drift_plot(series: dict[str, list[float]], title: str, y_label: str = RELATIVE_DRIFT) -> bytes:
    """Return a PNG with one line per series over the blocks; equal input gives equal bytes.

    Raises:
        InputError: As `drift_figure`.
    """
    return as_png(drift_figure(series, title, y_label))


def drift_figure(
    series: dict[str, list[float]], title: str, y_label: str = RELATIVE_DRIFT
) -> Figure:
    """Return a picture with one line per series over the blocks.

    The vertical axis is logarithmic where all values are positive and span a factor of 30.

    Raises:
        InputError: There is no series, or the series differ in length.
    """
    lengths = {name: len(values) for name, values in series.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise InputError(
            f"A drift plot needs one value per block in every series, found lengths {lengths}. "
            "Give series of equal length."
        )
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # a canvas of its own: pyplot would hold global state
    axes = figure.add_subplot()
    styles = zip("os^Dvx*" * len(series), series.items(), strict=False)
    for number, (marker, (name, values)) in enumerate(styles):
        width = 3 - min(number, 2)  # wider below, so that a covered line still shows
        size = 3 + 1.5 * width
        axes.plot(
            range(len(values)), values, marker=marker, markersize=size, linewidth=width, label=name
        )
    everything = [value for values in series.values() for value in values]
    if min(everything) > 0 and max(everything) > LOG_FROM * min(everything):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=title, xlabel="block", ylabel=y_label)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False)
    return figure


def as_png(figure: Figure) -> bytes:
    """Return a picture as a file; equal pictures give equal bytes."""
    buffer = io.BytesIO()
    # Without its own version in the metadata, an upgrade alone does not change the file.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
