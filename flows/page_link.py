"""How a page of a run is reached from Prefect's pages.

Those remove a ``file://`` address from a link, and browsers follow none from a page of a server, so
our server hands the reports out itself (`tasks.report_pages`). The link names no host: it holds
whichever port `normtweak ui` gets.
"""

import re
from pathlib import Path
from urllib.parse import quote

from tasks.environment import state_root
from tasks.report_pages import ADDRESS, PAGE

__all__ = ["PAGE", "artifact_key", "page_address", "publish_page"]


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


def artifact_key(name: str, report: str) -> str:
    """Return the key under which Prefect keeps the history of a report over runs of one recipe."""
    return re.sub(r"[^a-z0-9]+", "-", f"{name}-{report}".lower()).strip("-")
