"""The page of a run links its report where the server has it, and else holds what it says."""

import pytest
from prefect import flow
from prefect.runtime import flow_run

from flows.reports.document import (
    Cell,
    Code,
    Document,
    Drawing,
    Section,
    Table,
    Tile,
)
from flows.reports.html import to_html
from flows.reports.markdown import to_markdown
from flows.reports.publish import Report, page_address, publish_page
from tests.engine import artifacts_of

TABLE = Table(("block", "tweak"), [(Cell("0", 0.0), "kept | <b>")], "By block")
DOCUMENT = Document(
    "Quantization",
    "tiny-w2",
    "What was done to <b>.",
    [Tile("Perplexity", "30.1", "float 20.0"), Tile("Gate", "passed")],
    [
        Section("Result", [TABLE, "On 128 tokens."]),
        Section("Recipe", [["one", "two"], Code("name: <tiny>\n  bits: 2", "YAML")]),
        Section("Drift", [Drawing("A line.", "<svg></svg>", b"png", "drift.png")]),
    ],
)
MARKDOWN = """\
# tiny-w2

**Quantization.** What was done to &lt;b>.

- Perplexity: 30.1 (float 20.0)
- Gate: passed

## Result

By block

| block | tweak |
| ---: | --- |
| 0 | kept \\| &lt;b> |

On 128 tokens.

## Recipe

- one
- two

```
name: <tiny>
  bits: 2
```

## Drift

A line.
"""


def published(page) -> dict:
    @flow
    def publishing():
        publish_page(Report("tiny", page.parent, DOCUMENT, {}))
        return flow_run.id

    return artifacts_of(publishing())["tiny-page"]


def test_a_document_says_the_same_in_markdown():
    assert to_markdown(DOCUMENT) == MARKDOWN


def test_a_picture_stands_by_its_name_or_lies_inside_the_text():
    part = DOCUMENT.only("Drift")
    assert to_markdown(part, "named").endswith("## Drift\n\n![A line](drift.png)\n\nA line.\n")
    assert "![A line](data:image/png;base64,cG5n)\n" in to_markdown(part, "inside")
    assert DOCUMENT.pictures() == {"drift.png": b"png"}
    nameless = Document("Kind", "title", "Lead.", (), [Section("Drift", [Drawing("A line.")])])
    assert to_markdown(nameless, "inside").endswith("## Drift\n\nA line.\n")


def test_a_part_of_a_document_has_its_sections_and_no_tiles_unless_asked():
    part = DOCUMENT.only("Recipe", "Result")
    assert [section.title for section in part.sections] == ["Recipe", "Result"]
    assert part.tiles == ()
    assert DOCUMENT.only("Result", tiles=True).tiles == DOCUMENT.tiles


def test_our_server_has_the_page_and_is_linked(engine):
    page = engine / "exports" / "linked" / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(to_html(DOCUMENT))
    found = published(page)
    assert found.type == "markdown"  # as Prefect stores a link
    assert found.data == f"[Open the report]({page_address(page)})"


@pytest.mark.parametrize("other", [None, "<p>the page of another root</p>"])
def test_a_server_without_the_page_gets_what_it_says(engine, tmp_path, monkeypatch, other):
    name = "exports/absent/report.html"
    (engine / name).parent.mkdir(parents=True, exist_ok=True)
    (engine / name).unlink(missing_ok=True)
    if other:
        (engine / name).write_text(other)
    monkeypatch.setenv("NORMTWEAK_HOME", str(tmp_path))
    page = tmp_path / name
    page.parent.mkdir(parents=True)
    page.write_text(to_html(DOCUMENT))
    found = published(page)
    assert found.data == MARKDOWN
    assert str(page) in found.description
    assert "/normtweak/" not in found.data
