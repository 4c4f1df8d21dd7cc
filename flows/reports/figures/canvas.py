"""What every picture is drawn on, and how it comes into a document."""

import io
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flows.reports.document import Drawing
from flows.reports.figures.inline_svg import inline_svg

LOG_FROM = 30  # largest over smallest value from which a linear axis hides the small ones


def canvas(width: float, height: float, dpi: int = 120) -> Figure:
    """Return an empty picture; sizes are in inches."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)  # a canvas of its own: pyplot would hold global state
    return figure


def is_wide(values: Sequence[float]) -> bool:
    """Tell whether values want a logarithmic axis: all positive, and spanning a factor of 30."""
    return min(values) > 0 and max(values) > LOG_FROM * min(values)


def as_png(figure: Figure) -> bytes:
    """Return a picture as a file; equal pictures give equal bytes."""
    buffer = io.BytesIO()
    # Without its own version in the metadata, an upgrade alone does not change the file.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def drawing(figure: Figure, name: str, caption: str, file: str = "", title: str = "") -> Drawing:
    """Return a picture for a document; equal pictures give equal bytes.

    Args:
        figure: The picture, whose document says what it is of.
        name: As `inline_svg` takes it.
        caption: The sentence below it.
        file: Of the same as PNG; empty: it has none.
        title: Above that, which may lie alone.
    """
    svg = inline_svg(figure, name)
    if not file:
        return Drawing(caption, svg)
    figure.axes[0].set_title(title)
    return Drawing(caption, svg, as_png(figure), file)
