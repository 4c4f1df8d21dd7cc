"""The pages of reports, handed out by the server that also shows Prefect's pages."""

from pathlib import Path
from typing import TYPE_CHECKING

from normtweak_core.lazy import lazy

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

responses = lazy("starlette.responses")
routing = lazy("starlette.routing")

PAGE = "report.html"
ADDRESS = "/normtweak/"
# A page needs nothing but itself; should one ever hold more, no browser loads or sends it.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src data:; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def report_file(root: Path, path: str) -> Path | None:
    """Return the page at a path below the state root; None where there is none.

    Nothing else below the root is a page, and nothing beyond it, by whatever links.
    """
    root = root.resolve()
    found = (root / path).resolve()
    fits = found.name == PAGE and found.is_relative_to(root) and found.is_file()
    return found if fits else None


def report_route(root: Path) -> "Route":
    """Return the route that answers with the reports below a state root."""

    async def answer(request: "Request") -> "Response":
        path = request.path_params["path"]
        page = report_file(root, path)
        if page is None:
            text = f"There is no report {path} here: it was removed, or made on another machine."
            return responses.PlainTextResponse(text, status_code=404, headers=HEADERS)
        return responses.FileResponse(page, media_type="text/html; charset=utf-8", headers=HEADERS)

    return routing.Route(ADDRESS + "{path:path}", answer, methods=["GET", "HEAD"])
