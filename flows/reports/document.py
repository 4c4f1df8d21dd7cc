"""A result as a person reads it: data, which `html` and `markdown` write."""

import base64
import importlib.metadata
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from normtweak_core.evaluate.metric import Metric

PACKAGES = ("normtweak", "torch", "transformers", "compressed-tensors", "lm-eval", "prefect")


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the number it is sorted by; without one it is sorted as text."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows below heads, which sort them; a column of numbers stands to the right."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    caption: str = ""
    sorts: bool = True

    def __post_init__(self) -> None:
        """Check that every row fits the head."""
        assert all(len(row) == len(self.heads) for row in self.rows), self.caption

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, their texts as cells."""
        return [[Cell(one) if isinstance(one, str) else one for one in row] for row in self.rows]

    @property
    def numbers(self) -> list[bool]:
        """Whether a column holds nothing but numbers, a column each."""
        columns = [
            [cell for cell in column if cell.text] for column in zip(*self.cells, strict=True)
        ]
        found = [bool(one) and all(cell.number is not None for cell in one) for one in columns]
        return found or [False] * len(self.heads)


@dataclass(frozen=True)
class Drawing:
    """A picture and the sentence below it, which says in words what is to be seen."""

    caption: str
    svg: str = ""  # drawn by us: it is not escaped
    png: bytes = b""  # shown where there are no shapes
    file: str = ""  # of the PNG, in the folder of the result; empty: it has none

    @property
    def address(self) -> str:
        """An address that holds the PNG."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


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
    error: str = ""  # of the value, one standard error

    @property
    def text(self) -> str:
        """Value, error and note in a line."""
        value = f"{self.value} ± {self.error}" if self.error else self.value
        return f"{value} ({self.note})" if self.note else value

    @property
    def below(self) -> str:
        """What stands below the value: its error and the note."""
        return "; ".join(filter(None, (self.error and f"± {self.error}", self.note)))


Part = str | list[str] | Table | Drawing | Code  # a paragraph, a list of sentences, ...


@dataclass(frozen=True)
class Section:
    """A part of a document with a heading and a place in its list of contents."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        """Its name in an address."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Document:
    """The whole of a result."""

    kind: str  # such as "Quantization"
    title: str
    lead: str
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = ()

    def only(self, *titles: str, tiles: bool = False) -> "Document":
        """Return a document of some of the sections, in their order, with or without tiles."""
        found = {section.title: section for section in self.sections}
        chosen = tuple(found[title] for title in titles)
        return replace(self, sections=chosen, tiles=self.tiles if tiles else ())

    def pictures(self) -> dict[str, bytes]:
        """Return the pictures that have files, by name."""
        parts = [part for section in self.sections for part in section.parts]
        return {one.file: one.png for one in parts if isinstance(one, Drawing) and one.file}


def written(value: float, form: str = ".4f") -> str:
    """Return a number as text; a form that ends in ``%`` writes a share, as in ``71.0 %``."""
    return f"{100 * value:{form[:-1]}f} %" if form.endswith("%") else f"{value:{form}}"


def number(value: float | None, form: str = ".4f", stderr: float | None = None) -> Cell:
    """Return a number as a cell, its standard error behind it; none is an empty one.

    Args:
        value: None or NaN: there is no such number.
        form: As `written` takes it, for value and error; a sign belongs to the value alone.
        stderr: None: there is none.
    """
    if value is None or math.isnan(value):
        return Cell("")
    text = written(value, form)
    return Cell(text if stderr is None else f"{text} ± {written(stderr, form.lstrip('+'))}", value)


def measured(metric: Metric | None, form: str = ".4f") -> Cell:
    """Return a metric as a cell, its standard error behind it; none is an empty one."""
    return Cell("") if metric is None else number(metric.value, form, metric.stderr)


def facts_table(facts: Mapping[str, str] | Sequence[tuple[str, str]], what: str = "what") -> Table:
    """Return names and values as a table of two columns."""
    rows = facts.items() if isinstance(facts, Mapping) else facts
    return Table((what, "value"), [tuple(row) for row in rows], sorts=False)


def rows_table(
    rows: Sequence[Mapping[str, str | bool | float | None]],
    caption: str,
    forms: Mapping[str, str] | None = None,
) -> Table:
    """Return plain values as a table, a row each, their keys above.

    Args:
        rows: Alike in their keys; at least one.
        caption: Of the table.
        forms: Of numbers, by key; of the others four decimals are shown, and whole numbers whole.
    """

    def cell(name: str, value: str | bool | float | None) -> Cell:
        if isinstance(value, str | bool):
            return Cell(("yes" if value else "") if isinstance(value, bool) else value)
        form = "d" if isinstance(value, int) else ".4f"
        return number(value, (forms or {}).get(name, form))

    heads = [name.replace("_", " ") for name in rows[0]]
    return Table(heads, [[cell(*item) for item in row.items()] for row in rows], caption)


def environment() -> dict[str, str]:
    """Return the versions a result can depend on; nothing of the machine, nor of the hour."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"Python": platform.python_version()} | versions


def recipe_sections(text: str) -> list[Section]:
    """Return the end of a document: its recipe, as YAML, and the versions it rests on."""
    return [Section("Recipe", [Code(text, "The recipe as YAML")]), environment_section()]


def environment_section(versions: Mapping[str, str] | None = None) -> Section:
    """Return the part of a document about versions; None: of this environment."""
    return Section("Environment", [facts_table(versions or environment(), "package")])
