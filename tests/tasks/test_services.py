"""Servers that the environment names: real ones answer, others are told apart; proxies are not
asked for what lies on this machine."""

import http.server
import os
import threading
from contextlib import contextmanager

import pytest

from flows.checks.services import check_services
from normtweak_core.errors import InputError
from tasks.engine.addresses import without_password
from tasks.engine.api_address import check_engine
from tasks.engine.environment import LOOPBACK, set_variables
from tasks.registry.reachable import check_registry
from tasks.server.api import EmbeddedServer
from tests.flows.in_process import process_left_alone

PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@contextmanager
def web_server(answers: dict[str, tuple[int, bytes]]):
    """A server that answers some paths, and whatever else with 502; yields address and log."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, body = answers.get(self.path, (502, b"no"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


@pytest.fixture(autouse=True)
def no_proxies(engine_environment):
    with process_left_alone():
        for name in (*PROXIES, "no_proxy"):
            os.environ.pop(name, None)
            os.environ.pop(name.upper(), None)
        yield


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:sesame@host/x", "https://me:...@host/x"),
        ("https://me:ses@me@host", "https://me:...@host"),
        ("https://sesame@host:5000", "https://...@host:5000"),
        ("postgresql://h/db?user=u&password=sesame", "postgresql://h/db?user=u&password=..."),
        ("mssql://h/?odbc_connect=PWD%3Dsesame&x=1", "mssql://h/?odbc_connect=...&x=1"),
        ("http://host/@path", "http://host/@path"),
        ("sqlite:////folder/a@b.db", "sqlite:////folder/a@b.db"),
    ],
)
def test_no_secret_of_an_address_is_shown(address, shown):
    assert without_password(address) == shown


API = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"


@pytest.mark.parametrize(
    "answers",
    [
        {"/health": (200, b"OK")},
        {"/health": (401, b"who are you")},
        {API: (200, b'{"experiment": {}}')},
        {API: (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}')},
        {API: (403, b"")},
    ],
)
def test_what_answers_as_mlflow_does_is_a_registry(answers):
    with web_server(answers) as (uri, _):
        check_registry(uri)
        check_registry(uri.replace("://", "://user:secret@"))


@pytest.mark.parametrize(
    "answers", [{}, {"/health": (200, b"true")}, {API: (200, b"<html>")}, {API: (200, b"[]")}]
)
def test_another_server_is_no_registry(answers):
    with web_server(answers) as (uri, _), pytest.raises(InputError) as refused:
        check_registry(uri)
    assert str(refused.value).startswith(
        "MLFLOW_TRACKING_URI must be the address of an MLflow server; what answers at "
        f"{uri} is none (status "
    )


def test_the_api_of_prefect_is_an_engine_and_no_registry(session_api):
    check_engine(session_api)
    check_engine(f"{session_api}/")
    without = session_api.removesuffix("/api")
    with pytest.raises(InputError) as refused:
        check_engine(without)
    assert str(refused.value).startswith(
        "PREFECT_API_URL must be the address of a Prefect server, which ends in /api; what answers "
    )
    with pytest.raises(InputError, match=r"must be the address of an MLflow server; what answers"):
        check_registry(without)


def test_an_engine_that_wants_a_password_answers():
    with web_server({"/api/health": (401, b"")}) as (uri, _):
        check_engine(f"{uri}/api")


def test_a_port_that_takes_calls_and_says_nothing_is_told_in_seconds(monkeypatch):
    import socket

    monkeypatch.setattr("tasks.engine.addresses.SECONDS_TO_ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"that answers; {uri} does not \(timed out\): start"):
            check_registry(uri)


def test_a_file_that_is_no_database_is_no_registry(tmp_path):
    (tmp_path / "m.db").write_text("name: a recipe of some kind\n")
    with pytest.raises(InputError, match=r"must name a database of SQLite, or a file that is not "):
        check_registry(f"sqlite:///{tmp_path}/m.db")
    (tmp_path / "m.db").write_bytes(b"")
    check_registry(f"sqlite:///{tmp_path}/m.db")


def test_an_empty_variable_counts_as_unset(monkeypatch, tmp_path):
    empty = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "MLFLOW_REGISTRY_URI", "HF_HOME")
    for name in (*empty, "OMP_NUM_THREADS", "PREFECT_HOME"):
        monkeypatch.setenv(name, " " if name == "HF_HOME" else "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    set_variables(tmp_path)
    check_services(tmp_path)
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert int(os.environ["OMP_NUM_THREADS"]) >= 1
    assert not {"PREFECT_API_URL", "MLFLOW_REGISTRY_URI", "HF_HOME"} & set(os.environ)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # which means: no GPU


@pytest.mark.parametrize("place", ["home", "PREFECT_HOME", "PREFECT_PROFILES_PATH"])
def test_the_api_of_a_prefect_profile_counts_as_set(monkeypatch, tmp_path, place):
    home = tmp_path / "home"
    file = home / (".prefect" if place == "home" else "x") / "profiles.toml"
    file.parent.mkdir(parents=True)
    file.write_text(
        'active = "a"\n[profiles.a]\nPREFECT_API_URL = "http://h/api"\nPREFECT_API_KEY = "k"\n'
        'PREFECT_LOGGING_LEVEL = "DEBUG"\n[profiles.b]\nPREFECT_API_URL = "http://other/api"\n'
    )
    for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_HOME"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", str(home))
    if place != "home":
        monkeypatch.setenv(place, str(file if place.endswith("PATH") else file.parent))
    set_variables(tmp_path)
    assert os.environ["PREFECT_API_URL"] == "http://h/api"
    assert os.environ["PREFECT_API_KEY"] == "k"
    monkeypatch.setenv("PREFECT_API_URL", "")
    monkeypatch.setenv("PREFECT_PROFILE", "b")
    monkeypatch.setenv("PREFECT_HOME", "" if place == "home" else str(file.parent))
    set_variables(tmp_path)
    assert os.environ["PREFECT_API_URL"] == "http://other/api"


def test_what_lies_on_this_machine_is_reached_past_a_proxy(engine, session_api, monkeypatch):
    """The clients of Prefect and MLflow and our own question, and a proxy that refuses all."""
    import requests
    from mlflow import MlflowClient
    from prefect.client.orchestration import get_client

    with (
        web_server({}) as (proxy, asked),
        web_server({"/health": (200, b"OK")}) as (registry, seen),
    ):
        for name in PROXIES:
            monkeypatch.setenv(name, proxy)
        assert requests.get(f"{registry}/health", timeout=5).status_code == 502
        assert asked == [f"{registry}/health"]  # without further ado the proxy is asked
        asked.clear()
        monkeypatch.setenv("no_proxy", "example.org, .intern")
        set_variables(engine)
        check_engine(session_api)
        check_registry(registry)
        with get_client(sync_client=True) as client:
            assert client.api_healthcheck() is None
        assert requests.get(f"{registry}/health", timeout=5).text == "OK"
        uri = registry.replace("127.0.0.1", "localhost")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(Exception, match="502"):  # what our own little server says
            MlflowClient(tracking_uri=uri).get_experiment_by_name("x")
        assert asked == []
        assert any(path.startswith("/api/2.0/mlflow") for path in seen)
        child = EmbeddedServer(engine)._environment(1)
        hosts = ["example.org", ".intern", *LOOPBACK]
        assert child["no_proxy"].split(",") == child["NO_PROXY"].split(",") == hosts


def test_without_a_proxy_nothing_is_excepted_from_it(monkeypatch, tmp_path):
    set_variables(tmp_path)
    assert not {"no_proxy", "NO_PROXY"} & set(os.environ)
