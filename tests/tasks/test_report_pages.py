"""The server hands out reports and nothing else of the state root."""

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from flows.reports.publish import page_address
from tasks.server.report_pages import report_file, report_route

PAGE = "exports/model-w4/reports/0123456789ab/report.html"


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "state"
    page = root / PAGE
    page.parent.mkdir(parents=True)
    page.write_text("<!doctype html><p>a page</p>")
    (page.parent / "recipe.yaml").write_text("name: secret")
    (root / "report.html").mkdir()
    outside = tmp_path / "report.html"
    outside.write_text("not of this root")
    (root / "linked").mkdir()
    (root / "linked" / "report.html").symlink_to(outside)
    return root


def test_a_report_is_found(root):
    assert report_file(root, PAGE) == root / PAGE


@pytest.mark.parametrize(
    "path",
    [
        PAGE.replace("report.html", "recipe.yaml"),
        "../report.html",
        "/etc/passwd",
        "exports/../../report.html",
        "linked/report.html",
        "report.html",
        "absent/report.html",
        "",
    ],
)
def test_nothing_else_is(root, path):
    assert report_file(root, path) is None


def test_the_server_answers_with_the_page_before_its_own_routes(root, monkeypatch):
    monkeypatch.setenv("NORMTWEAK_HOME", str(root))
    app = Starlette(routes=[Mount("/", app=Starlette(routes=[Route("/{any:path}", _everything)]))])
    app.router.routes.insert(0, report_route(root))
    client = TestClient(app)
    answer = client.get(page_address(root / PAGE))
    assert (answer.status_code, answer.text) == (200, "<!doctype html><p>a page</p>")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    absent = client.get("/normtweak/exports/other/report.html")
    assert absent.status_code == 404
    assert absent.text == (
        "There is no report exports/other/report.html here: it was removed, or made on another "
        "machine."
    )
    assert absent.headers["content-type"].startswith("text/plain")
    assert client.get("/normtweak/%2e%2e/report.html").status_code == 404
    assert client.post(page_address(root / PAGE)).status_code == 405


def _everything(request):
    raise AssertionError("Prefect's pages were asked for a report")


def test_the_address_holds_spaces_and_signs(root, monkeypatch):
    monkeypatch.setenv("NORMTWEAK_HOME", str(root))
    assert page_address(root / "exports" / "a b#?" / "report.html") == (
        "/normtweak/exports/a%20b%23%3F/report.html"
    )
