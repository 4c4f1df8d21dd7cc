"""The drift of the quantized stream, block by block, as a picture."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flows.reports.figures.canvas import canvas, is_wide
from normtweak_core.errors import InputError

RELATIVE_DRIFT = r"$\|x_q - x_f\| \; / \; \|x_f\|$"


def drift_figure(series: dict[str, list[float]], y_label: str = RELATIVE_DRIFT) -> Figure:
    """Return a picture with one line per series over the blocks.

    The vertical axis is logarithmic where the values span much.

    Raises:
        InputError: There is no series, or the series differ in length.
    """
    lengths = {name: len(values) for name, values in series.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise InputError(
            f"A drift plot needs one value per block in every series, found lengths {lengths}. "
            "Give series of equal length."
        )
    figure = canvas(7, 4)
    axes = figure.add_subplot()
    styles = zip("os^Dvx*" * len(series), series.items(), strict=False)
    for number, (marker, (name, values)) in enumerate(styles):
        width = 3 - min(number, 2)  # wider below, so that a covered line still shows
        size = 3 + 1.5 * width
        axes.plot(
            range(len(values)), values, marker=marker, markersize=size, linewidth=width, label=name
        )
    everything = [value for values in series.values() for value in values]
    if is_wide(everything):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="block", ylabel=y_label)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False)
    return figure
