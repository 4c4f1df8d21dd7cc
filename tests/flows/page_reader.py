"""What a page says, read from its text as a program without scripts or network reads it."""

from html.parser import HTMLParser


class PageReader(HTMLParser):
    """Collects headings, tables, addresses and elements of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.numbers: list[list[list[float | None]]] = []
        self.headings: list[str] = []
        self.words = ""
        self.code = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
            self.numbers.append([])
        elif tag == "tr":
            self.tables[-1].append([])
            self.numbers[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            number = attributes.get("data-number")
            self.numbers[-1][-1].append(None if number is None else float(number))
        elif tag in ("h1", "h2"):
            self.headings.append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        inside = self._open[-1] if self._open else ""
        if inside in ("script", "style"):
            return
        self.words += data
        if inside in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif inside in ("h1", "h2"):
            self.headings[-1] += data
        elif inside == "code":
            self.code += data

    def table(self, *heads: str) -> list[dict[str, str]]:
        """Return the rows of the one table with all these heads, by head."""
        (found,) = [table for table in self.tables if set(heads) <= set(table[0])]
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]

    def addresses(self) -> list[str]:
        """Return everything that an element would load or lead to."""
        names = ("src", "href", "xlink:href", "action", "data", "srcset", "poster", "background")
        return [
            value or ""
            for _, attributes in self.elements
            for name, value in attributes.items()
            if name in names
        ]
