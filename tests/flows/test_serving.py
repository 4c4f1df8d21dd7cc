"""`normtweak ui` and `serve` end with everything they started, and schedules really schedule."""

import argparse
import http.client
import re
import signal
import time

import psutil
import pytest

from flows.commands.serving import MLFLOW_PORT, MlflowPages, PageServer, listen, page_of
from normtweak_core.errors import InputError
from tasks.server.api import running_server
from tests.engine import with_database
from tests.flows.pages import Command, ask, free_port

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def command(tmp_path, migrated_database):
    """A function that starts a command on one state root; what still runs is ended."""
    with_database(tmp_path / "state", migrated_database)
    started: list[Command] = []

    def start(*arguments: str) -> Command:
        output = tmp_path / f"output-{len(started)}.txt"
        started.append(Command(tmp_path / "state", output, "flows.cli", *arguments))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def status(url: str) -> int:
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        connection.request("GET", f"/{path}", headers={"Accept": "text/html"})
        return connection.getresponse().status
    finally:
        connection.close()


def test_ui_shows_both_pages_and_takes_its_children_along_when_it_is_killed(command, tmp_path):
    prefect, mlflow = free_port(), free_port()
    ui = command("ui", "--prefect-port", str(prefect), "--mlflow-port", str(mlflow))
    ui.until("Registered versions")
    assert re.search(rf"\(Prefect\): +http://127.0.0.1:{prefect}\n", ui.text())
    assert re.search(rf"\(MLflow\): +http://127.0.0.1:{mlflow}/#/models\n", ui.text())
    assert status(f"http://127.0.0.1:{prefect}/v2/") == 200
    assert status(f"http://127.0.0.1:{mlflow}/") == 200
    # Without the variables it is set by, the page would ask the API of another server.
    settings = ask(f"http://127.0.0.1:{prefect}/ui-settings")
    assert settings["api_url"] == f"http://127.0.0.1:{prefect}/api"
    assert running_server(tmp_path / "state") == settings["api_url"]
    below = psutil.Process(ui.process.pid).children(recursive=True)
    assert len(below) >= 4  # Prefect; the guard, MLflow, and the server that MLflow starts
    addresses = {
        connection.laddr
        for process in below
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.ip for address in addresses} == {"127.0.0.1"}
    assert {prefect, mlflow} <= {address.port for address in addresses}
    page = command("ui", "--mlflow-port", str(free_port()))  # finds the Prefect server
    page.until("Registered versions")
    assert f"http://127.0.0.1:{prefect}\n" in page.text()
    below += psutil.Process(page.process.pid).children(recursive=True)
    page.process.kill()
    page.process.wait()
    assert status(f"http://127.0.0.1:{prefect}/v2/") == 200
    ui.process.kill()
    ui.process.wait()
    _, alive = psutil.wait_procs(below, timeout=25)
    assert not alive
    assert running_server(tmp_path / "state") is None


def test_ui_ends_with_a_sentence_when_one_of_its_servers_ends(command, tmp_path):
    ui = command("ui", "--prefect-port", str(free_port()), "--mlflow-port", str(free_port()))
    ui.until("Registered versions")
    below = psutil.Process(ui.process.pid).children()
    (server,) = [process for process in below if "tasks.server.api_child" in process.cmdline()]
    server.kill()
    assert ui.process.wait(60) == 1
    assert "normtweak: The Prefect server must run on, but it ended. See" in ui.text()
    _, alive = psutil.wait_procs(below, timeout=25)
    assert not alive


def test_serve_schedules_what_the_file_says_and_stops_in_good_order(command, tmp_path):
    port = free_port()
    serve = command("serve", "--prefect-port", str(port))
    serve.until("Serving quantize/nightly (30 2 * * * UTC). Ctrl-C ends it.")
    api = f"http://127.0.0.1:{port}/api"
    assert running_server(tmp_path / "state") == api
    (deployment,) = ask(f"{api}/deployments/filter", {})
    assert deployment["parameters"]["recipe"]["quantization"]["bits"] == 2
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert not deployment["paused"]
    planned = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    end = time.monotonic() + 90
    while not (runs := ask(f"{api}/flow_runs/filter", planned)):
        log = tmp_path / "state" / "prefect" / "pages.log"
        assert time.monotonic() < end, f"nothing was scheduled: {log.read_text()[-3000:]}"
        time.sleep(1)
    assert {run["deployment_id"] for run in runs} == {deployment["id"]}
    assert all("T02:30:00" in run["expected_start_time"] for run in runs)
    run = ask(f"{api}/deployments/{deployment['id']}/create_flow_run", {})
    serve.until(" started; log: ")
    (log,) = (tmp_path / "state" / "logs").glob("*-quantize-*.log")
    # On the page too, where the first line of a stage tells that the level is right.
    lines = {"logs": {"flow_run_id": {"any_": [run["id"]]}, "level": {"le_": 20}}}
    while not any(
        line["name"].startswith(("flows.", "tasks.")) and line["message"] in log.read_text()
        for line in ask(f"{api}/logs/filter", lines)
    ):
        assert time.monotonic() < end + 90, serve.text()
        time.sleep(0.5)
    below = psutil.Process(serve.process.pid).children(recursive=True)
    assert below
    for _ in range(2):  # an impatient person, or a shell and its job
        serve.process.send_signal(signal.SIGTERM)
    assert serve.process.wait(90) == 0, serve.text()
    assert serve.text().endswith("Stopped.\n")
    assert "Traceback" not in serve.text()
    _, alive = psutil.wait_procs(below, timeout=5)
    assert not alive


def test_a_port_that_was_asked_for_and_is_taken_is_refused(command):
    with listen(None, free_port(), "--prefect-port") as listener:
        taken = listener.getsockname()[1]
        with pytest.raises(InputError, match=rf"--mlflow-port must be a free port.*{taken}.*give"):
            listen(taken, MLFLOW_PORT, "--mlflow-port")


def test_a_usual_port_that_is_taken_makes_room_for_the_next_free_one():
    with listen(None, free_port(), "--prefect-port") as first:
        usual = first.getsockname()[1]
        with listen(None, usual, "--prefect-port") as second:
            assert usual < second.getsockname()[1] < usual + 50


def test_a_taken_port_ends_ui_with_exit_code_2_and_nothing_left(command):
    with listen(None, free_port(), "--prefect-port") as listener:
        ui = command("ui", "--mlflow-port", str(listener.getsockname()[1]))
        assert ui.process.wait(60) == 2
    assert "normtweak: --mlflow-port must be a free port" in ui.text()
    assert "Traceback" not in ui.text()


def test_the_pages_of_a_registry_server_of_the_user_are_shown_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    pages = MlflowPages(tmp_path, None)
    pages.start()
    pages.wait()
    assert pages.url == "http://127.0.0.1:9"
    assert pages.child is None
    assert pages.runs()
    pages.stop()


def test_a_prefect_server_that_never_started_can_be_stopped(tmp_path):
    PageServer(tmp_path, None).stop()


@pytest.mark.parametrize("api", ["http://127.0.0.1:4200/api", "http://127.0.0.1:4200/api/"])
def test_the_page_lies_above_the_api(api):
    assert page_of(api) == "http://127.0.0.1:4200"


def test_serve_refuses_a_folder_without_deployments_before_it_starts_anything(
    tmp_path, monkeypatch
):
    from flows.commands.serving import run_serve

    (tmp_path / "prefect.yaml").write_text("deployments: []\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="must list deployments"):
        run_serve(argparse.Namespace(prefect_port=None))
