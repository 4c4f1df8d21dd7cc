"""A document as Markdown, for files, and for places that show text and tables."""

from collections.abc import Sequence
from typing import Literal

from flows.reports.document import Code, Document, Drawing, Points, Section, Table, Words

Pictures = Literal["named", "inside", "told"]


def to_markdown(document: Document, pictures: Pictures = "told") -> str:
    """Return a document as Markdown; equal documents give equal text.

    Args:
        document: The document.
        pictures: Those that have a file are shown by its name, or lie inside the text; or every
            picture is told by its caption alone, as those without a file always are.
    """
    lines = [f"# {document.title}", "", f"**{document.kind}.** {document.lead}"]
    lines += [""] * bool(document.tiles)
    lines += [f"- {tile.label}: {tile.text}" for tile in document.tiles]
    lines = [_tagless(line) for line in lines]
    for section in document.sections:
        lines += _section_lines(section, pictures)
    return "\n".join(lines) + "\n"


def _section_lines(section: Section, pictures: Pictures) -> list[str]:
    lines = ["", f"## {_tagless(section.title)}"]
    for part in section.parts:
        if isinstance(part, Code):
            lines += ["", "```", part.text.strip("\n"), "```"]
        else:
            lines += ["", *(_tagless(line) for line in _part_lines(part, pictures))]
    return lines


def _part_lines(part: Table | Drawing | Words | Points, pictures: Pictures) -> list[str]:
    match part:
        case Words(text):
            return [text]
        case Points(points):
            return [f"- {line}" for line in points]
        case Drawing(caption, file=file):
            if pictures == "told" or not file:
                return [caption]
            return [f"![]({file if pictures == 'named' else part.address})", "", caption]
        case Table(columns, rows, caption):
            cells = [[one if isinstance(one, str) else one.text for one in row] for row in rows]
            sides = "".join("r" if column.numbers else "l" for column in columns)
            table = markdown_table([column.title for column in columns], cells, sides)
            return [*([caption, ""] if caption else []), *table]


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], alignment: str
) -> list[str]:
    """Return the lines of a table; alignment has a letter a column, l or r."""
    rule = ["---:" if side == "r" else "---" for side in alignment]
    head, *lines = ([cell.replace("|", "\\|") for cell in row] for row in (header, *rows))
    return [f"| {' | '.join(line)} |" for line in (head, rule, *lines)]


def _tagless(text: str) -> str:
    """Return a text in which nothing is the beginning of a tag: Markdown takes those as well."""
    return text.replace("<", "&lt;")
