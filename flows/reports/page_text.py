"""A written page as Markdown, for a place that shows text and tables and opens no link of ours."""

from html.parser import HTMLParser

from flows.reports.words import markdown_table

SKIPPED = ("style", "script", "svg", "title", "nav")
ENDS_A_LINE = ("p", "h1", "h2", "li", "figcaption", "caption", "dt")


def page_text(html: str) -> str:
    """Return what a page says: headings, paragraphs, lists and tables; pictures by their caption.

    Args:
        html: One of our pages, whose elements are few (`page_parts/page.html`).
    """
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return "\n".join(reader.lines).strip() + "\n"


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._skips = 0  # open elements whose text is not for people
        self._text = ""
        self._rows: list[list[str]] = []
        self._kinds = ""  # of the columns of a table, as `markdown_table` takes them

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in SKIPPED:
            self._skips += 1
        elif tag == "table":
            self._rows, self._kinds = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in (*ENDS_A_LINE, "td", "th", "dd", "pre"):
            self._text = ""
        if tag == "th":
            self._kinds += "r" if ("class", "number") in attributes else "l"

    def handle_data(self, data: str) -> None:
        if not self._skips:
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in SKIPPED:
            self._skips -= 1
        if self._skips:
            return
        text = " ".join(self._text.split()).replace("<", "&lt;")  # Markdown takes tags as well
        if tag in ("td", "th"):
            self._rows[-1].append(text.replace("|", "\\|"))
        elif tag == "table" and self._rows:
            self.lines += ["", *markdown_table(self._rows[0], self._rows[1:], self._kinds), ""]
        elif tag == "pre":
            self.lines += ["", "```", self._text.strip("\n"), "```", ""]
        elif tag == "dd" and text:  # a tile: its name stands in front
            self.lines[-1] += f" {text}"
        elif tag in ENDS_A_LINE and text:
            mark = {"h1": "# ", "h2": "## ", "li": "- ", "dt": "- "}.get(tag, "")
            space = [] if mark == "- " else [""]
            end = ":" if tag == "dt" else ""
            self.lines += [*space, f"{mark}{text}{end}", *space]
