"""The page of a run links its report where the server has it, and else holds what it says."""

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter
from prefect.runtime import flow_run

from flows.reports.html import (
    Cell,
    Code,
    Column,
    Page,
    Points,
    Section,
    Table,
    Tile,
    Words,
    page_html,
)
from flows.reports.page_text import page_text
from flows.reports.publish import page_address, publish_page

TABLE = Table((Column("block"), Column("tweak", numbers=False)), [(Cell("0", 0.0), "kept | <b>")])
HTML = page_html(
    Page(
        "Quantization",
        "tiny-w2",
        "What was done.",
        [Tile("Perplexity", "30.1", "float 20.0"), Tile("Gate", "passed")],
        [
            Section("Result", [TABLE, Words("On 128 tokens.")]),
            Section("Recipe", [Points(["one", "two"]), Code("name: tiny\n  bits: 2", "YAML")]),
        ],
    )
)
MARKDOWN = """\
Quantization


# tiny-w2


What was done.

- Perplexity: 30.1 float 20.0
- Gate: passed

## Result


| block | tweak |
| ---: | --- |
| 0 | kept \\| &lt;b> |


On 128 tokens.


## Recipe

- one
- two

```
name: tiny
  bits: 2
```
"""


def published(page) -> dict:
    @flow
    def publishing():
        publish_page("tiny", page)
        return flow_run.id

    chosen = ArtifactFilter(flow_run_id={"any_": [publishing()]})
    with get_client(sync_client=True) as client:
        (found,) = client.read_artifacts(artifact_filter=chosen)
    assert found.key == "tiny-page"
    return found


def test_a_page_says_the_same_in_markdown():
    assert page_text(HTML) == MARKDOWN


def test_our_server_has_the_page_and_is_linked(engine):
    page = engine / "exports" / "linked" / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(HTML)
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
    page.write_text(HTML)
    found = published(page)
    assert found.data == MARKDOWN
    assert str(page) in found.description
    assert "/normtweak/" not in found.data
