"""A picture as an SVG element that lies inside an HTML page and takes its colours from there."""

import io
import re

import matplotlib
from matplotlib.figure import Figure

# What matplotlib draws lines in by default, in its order. A page that defines the CSS variables
# --line-0 to --line-9 chooses its own; where it does not, they stay as they are.
COLOURS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
)
INK = "#000000"
POINTS_PER_INCH = 72
# Every element that names itself or another: ids are the whole page's, not the picture's.
_NAMES = re.compile(r'(\bid="|xlink:href="#|url\(#)')
_STYLE_OF_THE_WHOLE_PAGE = re.compile(r"<defs>\s*<style.*?</style>\s*</defs>\s*", re.DOTALL)
_COMMENTS = re.compile(r"<!--.*?-->\s*", re.DOTALL)


def inline_svg(figure: Figure, name: str) -> str:
    """Return a picture as an ``<svg>`` element; equal pictures give equal text.

    The ground is transparent, ink is the text colour around it, letters are drawn as shapes, so
    that it needs no font. It holds no script, style sheet, comment or address.

    Args:
        figure: The picture; its title and labels are the only text from outside.
        name: Begins every id, so that several pictures fit one page: letters, digits and dashes.
    """
    assert re.fullmatch(r"[a-z][a-z0-9-]*", name), name
    buffer = io.StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    # Ids would be random without a salt.
    with matplotlib.rc_context({"svg.hashsalt": "normtweak"}):
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].strip()
    drawn = _COMMENTS.sub("", _STYLE_OF_THE_WHOLE_PAGE.sub("", drawn))
    body = _NAMES.sub(rf"\1{name}-", drawn[drawn.index(">") + 1 :])
    body = body.replace(INK, "currentColor")
    for number, colour in enumerate(COLOURS):
        body = body.replace(colour, f"var(--line-{number}, {colour})")
    width, height = (size * POINTS_PER_INCH for size in figure.get_size_inches())
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" fill="currentColor" stroke-linejoin="round" '
        f'aria-hidden="true">{body}'
    )
