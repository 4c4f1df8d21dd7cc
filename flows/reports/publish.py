"""How a page of a run is reached from Prefect's pages.

Those remove a ``file://`` address from a link, and browsers follow none from a page of a server, so
our server hands the reports out itself (`tasks.server.report_pages`). The link names no host: it
holds whichever port `normtweak ui` gets. A Prefect server that is not ours has no such page: there
the artifact holds what the page says. Where MLflow has a server, its page of the report is linked.
"""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tasks.engine.client import sync_client
from tasks.engine.environment import state_root
from tasks.engine.live_page import artifact_key, show_table
from tasks.server.report_pages import ADDRESS, PAGE

__all__ = ["PAGE", "artifact_key", "page_address", "publish_page", "publish_table"]


def publish_page(name: str, page: Path) -> None:
    """Link a written page from the current flow run, or show there what it says.

    Args:
        name: Of the recipe.
        page: Under the state root.
    """
    from prefect.artifacts import create_link_artifact, create_markdown_artifact

    key = artifact_key(name, "page")
    if _is_served(page):
        create_link_artifact(
            key=key,
            link=page_address(page),
            link_text="Open the report",
            description=f"Opens while `normtweak ui` or `normtweak serve` runs. The file: `{page}`",
        )
        return
    from flows.reports.page_text import page_text

    text = page_text(page.read_text(encoding="utf-8"))
    create_markdown_artifact(
        key=key, markdown=text, description=f"The report, without its pictures. The file: `{page}`"
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
    from mlflow import MlflowClient
    from prefect.artifacts import create_link_artifact

    client = MlflowClient(tracking_uri=address, registry_uri=address)
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
    import httpx

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


def publish_table(name: str, report: str, rows: list[dict[str, Any]], description: str) -> None:
    """Show a table on the page of the current flow run; one that has grown there is replaced.

    Args:
        name: Of the recipe.
        report: What it is called.
        rows: Of the table.
        description: What it tells.
    """
    from prefect.artifacts import create_table_artifact

    if not show_table(report, rows, description):
        create_table_artifact(key=artifact_key(name, report), table=rows, description=description)
