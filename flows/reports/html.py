"""A document as one HTML file: it opens from disk, without a network, and without scripts.

Everything on it passes through the template, which escapes whatever is not `Markup`; only pictures
are, and those are drawn here.
"""

import functools
from pathlib import Path

import jinja2
from markupsafe import Markup

from flows.reports.document import Document, Drawing

PARTS = Path(__file__).with_name("page_parts")


def to_html(document: Document) -> str:
    """Return a document as one HTML file; equal documents give equal text."""
    return _template().render(
        page=document,
        style=Markup((PARTS / "page.css").read_text(encoding="utf-8")),
        script=Markup((PARTS / "sort.js").read_text(encoding="utf-8")),
    )


def _picture(drawing: Drawing) -> Markup:
    """Return shapes, or what is of too many parts to be drawn as shapes as a PNG in the page."""
    if drawing.svg:
        return Markup(drawing.svg)
    return Markup('<img alt="" src="{}">').format(drawing.address)


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
    surroundings.filters["picture"] = _picture
    return surroundings.get_template("page.html")
