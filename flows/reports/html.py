"""A page as one file: it opens from disk, without a network, and reads well without scripts.

Everything on it passes through the template, which escapes whatever is not `Markup`; only pictures
are, and those are drawn here.
"""

import base64
import functools
import importlib.metadata
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jinja2
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = Path(__file__).with_name("page_parts")
PACKAGES = ("normtweak", "torch", "transformers", "compressed-tensors", "lm-eval", "prefect")


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the number it is sorted by; without one it is sorted as text."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Column:
    """The head of a column; numbers stand to the right."""

    title: str
    numbers: bool = True
    help: str = ""


@dataclass(frozen=True)
class Table:
    """Rows that can be sorted by each of their columns."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell | str]]
    caption: str = ""
    sorts: bool = True

    def __post_init__(self) -> None:
        """Check that every row fits the head."""
        assert all(len(row) == len(self.columns) for row in self.rows), self.caption


@dataclass(frozen=True)
class Drawing:
    """A picture and the sentence below it, which says in words what is to be seen."""

    markup: Markup
    caption: str


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Text that is shown as it is."""

    text: str
    label: str


@dataclass(frozen=True)
class Tile:
    """A number that is to be seen first."""

    label: str
    value: str
    note: str = ""
    tone: Literal["", "good", "bad"] = ""


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading and a place in its list of contents."""

    title: str
    parts: Sequence[Table | Drawing | Words | Points | Code]

    @property
    def anchor(self) -> str:
        """Its name in an address."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """The whole of it."""

    kind: str  # such as "Quantization"
    title: str
    lead: str
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def page_html(page: Page) -> str:
    """Return a page as one HTML file; equal pages give equal text."""
    return _template().render(
        page=page,
        style=Markup((PARTS / "page.css").read_text(encoding="utf-8")),
        script=Markup((PARTS / "sort.js").read_text(encoding="utf-8")),
    )


def drawing(figure: "Figure", name: str, caption: str) -> Drawing:
    """Return a picture for a page.

    Args:
        figure: The picture.
        name: Tells it from the other pictures of the page: letters, digits and dashes.
        caption: The sentence below it.
    """
    from flows.reports.figures.inline_svg import inline_svg  # matplotlib takes its time

    return Drawing(Markup(inline_svg(figure, name)), caption)


def picture(png: bytes, caption: str) -> Drawing:
    """Return a picture of too many parts to be drawn as shapes: it lies in the page as a PNG."""
    address = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return Drawing(Markup('<img alt="" src="{}">').format(address), caption)


def number(value: float | None, form: str = ".4f", stderr: float | None = None) -> Cell:
    """Return a number as a cell, its standard error behind it; none is an empty one.

    Args:
        value: None or NaN: there is no such number.
        form: How value and error are written; a sign belongs to the value alone.
        stderr: None: there is none.
    """
    if value is None or math.isnan(value):
        return Cell("")
    text = f"{value:{form}}"
    return Cell(text if stderr is None else f"{text} ± {stderr:{form.removeprefix('+')}}", value)


def facts_table(facts: Mapping[str, str] | Sequence[tuple[str, str]], what: str = "what") -> Table:
    """Return names and values as a table of two columns."""
    rows = facts.items() if isinstance(facts, Mapping) else facts
    columns = (Column(what, numbers=False), Column("value", numbers=False))
    return Table(columns, [tuple(row) for row in rows], sorts=False)


def environment() -> dict[str, str]:
    """Return the versions a result can depend on; nothing of the machine, nor of the hour."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"Python": platform.python_version()} | versions


def environment_section(versions: Mapping[str, str]) -> Section:
    """Return the part of a page about versions."""
    return Section("Environment", [facts_table(versions, "package")])


@functools.cache
def _template() -> jinja2.Template:
    surroundings = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PARTS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    surroundings.tests["kind"] = lambda part, name: type(part).__name__ == name
    return surroundings.get_template("page.html")
