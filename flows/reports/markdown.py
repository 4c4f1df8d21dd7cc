"""A document as Markdown, for files, and for places that show text and tables."""

from collections.abc import Sequence
from typing import Literal

from flows.reports.document import Code, Document, Drawing, Section, Table

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


def _part_lines(part: str | list[str] | Table | Drawing, pictures: Pictures) -> list[str]:
    match part:
        case str():
            return [part]
        case list():
            return [f"- {line}" for line in part]
        case Drawing(caption, file=file):
            if pictures == "told" or not file:
                return [caption]
            place = file if pictures == "named" else part.address
            return [f"![{_first_sentence(caption)}]({place})", "", caption]
        case Table(heads, caption=caption):
            sides = "".join("r" if numbers else "l" for numbers in part.numbers)
            texts = [[cell.text for cell in row] for row in part.cells]
            return [*([caption, ""] if caption else []), *markdown_table(heads, texts, sides)]


def _first_sentence(text: str) -> str:
    """Return what stands for a picture where it cannot be seen."""
    return text.partition(". ")[0].rstrip(".").translate(str.maketrans("[]", "()"))


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
