"""A result is written to its folder, and shown on the page of its run.

Prefect's pages remove a ``file://`` address from a link, and browsers follow none from a page of a
server, so our server hands the reports out itself (`tasks.server.report_pages`). The link names no
host: it holds whichever port `normtweak ui` gets. A Prefect server that is not ours has no such
page: there the artifact holds what the page says. Where MLflow has a server, its page of the report
is linked.

Nothing in a file depends on when or where a run took place: equal runs write equal bytes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from flows.reports.document import Document
from flows.reports.html import to_html
from flows.reports.markdown import to_markdown
from normtweak_core.lazy import lazy
from tasks.engine.artifacts import write_atomically
from tasks.engine.client import sync_client
from tasks.engine.environment import state_root
from tasks.engine.live_page import artifact_key, show_table
from tasks.server.report_pages import ADDRESS, PAGE

mlflow = lazy("mlflow")  # three seconds, and an evaluation needs none of it

if TYPE_CHECKING:
    from pandas import DataFrame

    from tasks.tables.frame import Table

__all__ = ["PAGE", "Report", "artifact_key", "publish", "publish_table", "write"]

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Report:
    """A result as it is written and shown."""

    name: str  # of the recipe: what is shown is called after it
    folder: Path
    document: Document  # its page; its pictures are written as well
    data: Mapping[str, "str | tuple[Table, DataFrame]"]  # files
    texts: Mapping[str, Document] = field(default_factory=dict)  # Markdown files
    shown: Mapping[str, tuple[Document, str]] = field(default_factory=dict)  # and descriptions
    tables: Mapping[str, tuple[Rows, str]] = field(default_factory=dict)  # and descriptions


def write(report: Report) -> list[Path]:
    """Write the files of a result, each whole, and return them; the page is the last.

    Raises:
        TableError: A table holds what it may not.
    """
    report.folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {
        **report.data,
        **{name: to_markdown(text, "named") for name, text in report.texts.items()},
        **report.document.pictures(),
        PAGE: to_html(report.document),
    }
    for name, content in files.items():
        if isinstance(content, tuple):
            table, frame = content
            table.write(report.folder / name, frame)
        else:
            data = content.encode() if isinstance(content, str) else content
            write_atomically(report.folder / name, data)
    return [report.folder / name for name in files]


def publish(report: Report) -> list[Path]:
    """Write the files of a result, show them on the page of the current flow run, return them.

    Raises:
        TableError: As `write`.
    """
    files = write(report)
    for key, (rows, description) in report.tables.items():
        publish_table(report.name, key, rows, description)
    for key, (text, description) in report.shown.items():
        # Both of Prefect's pages draw an image inside the text; its image artifact would print the
        # whole address, 40 kB of it, below the picture.
        create_markdown_artifact(
            key=artifact_key(report.name, key),
            markdown=to_markdown(text, "inside"),
            description=description,
        )
    publish_page(report)
    return files


def publish_page(report: Report) -> None:
    """Link a written page from the current flow run, or show there what it says."""
    key, page = artifact_key(report.name, "page"), report.folder / PAGE
    if _is_served(page):
        create_link_artifact(
            key=key,
            link=page_address(page),
            link_text="Open the report",
            description=f"Opens while `normtweak ui` or `normtweak serve` runs. The file: `{page}`",
        )
        return
    create_markdown_artifact(
        key=key,
        markdown=to_markdown(report.document),
        description=f"The report, without its pictures. The file: `{page}`",
    )


def publish_registry_link(name: str, registered: dict[str, Any]) -> None:
    """Link MLflow's page of the reports of a version from the current flow run, if it has a server.

    Args:
        name: Of the recipe.
        registered: The version, as the result file has it.
    """
    address = os.environ["MLFLOW_TRACKING_URI"].rstrip("/")
    if not address.startswith(("http://", "https://")):
        return
    client = mlflow.MlflowClient(tracking_uri=address, registry_uri=address)
    version = client.get_model_version(registered["name"], str(registered["version"]))
    run = client.get_run(version.run_id).info
    create_link_artifact(
        key=artifact_key(name, "registry"),
        link=f"{address}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts/reports",
        link_text="Open the reports in MLflow",
        description=f"Reports and files of `{registered['model_uri']}`",
    )


def _is_served(page: Path) -> bool:
    """Tell whether the Prefect server of this run hands out this very page."""
    with sync_client() as client:
        pages = str(client.api_url).rstrip("/").removesuffix("/api")
    try:
        answer = httpx.get(pages + page_address(page), timeout=10)
    except httpx.HTTPError:
        return False
    # Prefect's own server answers every address, with the page of its pages.
    return answer.status_code == httpx.codes.OK and answer.content == page.read_bytes()


def page_address(page: Path) -> str:
    """Return where our server shows a page, without its host."""
    return ADDRESS + quote(page.relative_to(state_root()).as_posix())


def without_hashes(rows: Rows) -> Rows:
    """Return rows as a page shows them."""
    return [
        {key: value for key, value in row.items() if not key.endswith("sha256")} for row in rows
    ]


def publish_table(name: str, report: str, rows: Rows, description: str) -> None:
    """Show a table on the page of the current flow run; one that has grown there is replaced."""
    if not show_table(report, rows, description):
        create_table_artifact(key=artifact_key(name, report), table=rows, description=description)
