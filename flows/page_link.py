"""How a page of a run is reached from Prefect's pages.

Those remove a ``file://`` address from a link, and browsers follow none from a page of a server, so
our server hands the reports out itself (`tasks.report_pages`). The link names no host: it holds
whichever port `normtweak ui` gets.
"""

from pathlib import Path
from typing import Any
from urllib.parse import quote

from tasks.environment import state_root
from tasks.live_page import artifact_key, show_table
from tasks.report_pages import ADDRESS, PAGE

__all__ = ["PAGE", "artifact_key", "page_address", "publish_page", "publish_table"]


def publish_page(name: str, page: Path) -> None:
    """Link a written page from the current flow run.

    Args:
        name: Of the recipe.
        page: Under the state root.
    """
    from prefect.artifacts import create_link_artifact

    create_link_artifact(
        key=artifact_key(name, "page"),
        link=page_address(page),
        link_text="Open the report",
        description=f"Opens while `normtweak ui` or `normtweak serve` runs. The file: `{page}`",
    )


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
