"""How mean and variance of each channel part from the float model's: the source paper's Figure 1.

Above, block by block: half of the channels lie inside the band, the line is the median. Below, the
channels behind the last block, ordered by what the float model has there.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from flows.reports.figures.canvas import as_png, canvas
from normtweak_core.errors import InputError
from normtweak_core.evaluate.channel_drift import ChannelDrift

QUARTILES = (25, 50, 75)
SHIFT = "|mean shift| / float deviation"
SPREAD = "|ln(deviation / float deviation)|"


def channel_figure(stages: Mapping[str, ChannelDrift], title: str) -> bytes:
    """Return a PNG of the drift of means and variances; equal input gives equal bytes.

    A channel that is constant in the float model has no unit to be measured in and is left out.

    Raises:
        InputError: There is no stage, or the stages differ in blocks or channels.
    """
    shapes = {name: stage.mean.shape for name, stage in stages.items()}
    if len(set(shapes.values())) != 1:
        raise InputError(
            "a figure of channels needs stages of equally many blocks and channels; found "
            f"{shapes or 'none'}. Give stages of one model."
        )
    figure = canvas(10, 7)
    over_blocks, last_block = figure.subplots(2, 2)
    figure.suptitle(title)
    for number, (name, stage) in enumerate(stages.items()):
        color = f"C{number}"
        _band(over_blocks[0], np.abs(stage.mean_shift()), name, color)
        _band(over_blocks[1], np.abs(_logarithm(stage.spread())), name, color)
        _profile(last_block[0], stage.mean_float[-1], stage.mean_shift()[-1], color)
        _profile(last_block[1], stage.variance_float[-1], stage.spread()[-1], color)
    over_blocks[0].set(title="mean, block by block", ylabel=SHIFT)
    over_blocks[1].set(title="variance, block by block", ylabel=SPREAD)
    for axes in over_blocks:
        axes.set(xlabel="block", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
    last_block[0].set(
        title="behind the last block", ylabel="mean shift / float deviation",
        xlabel="channels by float mean",
    )  # fmt: skip
    last_block[1].set(
        title="behind the last block", ylabel="deviation / float deviation",
        xlabel="channels by float variance",
    )  # fmt: skip
    last_block[0].axhline(0, color="black", linewidth=0.8)
    last_block[1].axhline(1, color="black", linewidth=0.8)
    for axes in (*over_blocks, *last_block):
        axes.grid(visible=True, alpha=0.3)
    return as_png(figure)


def _band(axes: Axes, values: np.ndarray, name: str, color: str) -> None:
    """Draw the quartiles over channels, a line and a band over the blocks."""
    known = [row[np.isfinite(row)] for row in values]
    low, middle, high = np.transpose(
        [np.percentile(row, QUARTILES) if len(row) else [np.nan] * 3 for row in known]
    )
    blocks = range(len(values))
    axes.plot(blocks, middle, marker="o", markersize=4, color=color, label=name)
    axes.fill_between(blocks, low, high, color=color, alpha=0.15, linewidth=0)


def _profile(axes: Axes, order_by: np.ndarray, values: np.ndarray, color: str) -> None:
    """Draw one dot a channel."""
    ordered = values[np.argsort(order_by, kind="stable")]
    axes.plot(ordered, ".", markersize=3, alpha=0.6, color=color)


def _logarithm(values: np.ndarray) -> np.ndarray:
    """Return the natural logarithm; NaN for zero, a channel that quantization made constant."""
    return np.log(values, out=np.full_like(values, np.nan), where=values > 0)
