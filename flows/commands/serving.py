"""`normtweak ui` and `normtweak serve`: the pages of Prefect and MLflow, and scheduled runs.

Both start servers that end with this process, however it ends. While one of them runs, commands on
the same state root use its Prefect server, so that their runs appear on its pages at once.
"""

import argparse
import contextlib
import http.client
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from flows.checks.services import check_services
from flows.commands.command import Command
from flows.commands.first_line import first_line
from flows.deploy import find_deployment_file, read_deployments
from normtweak_core.errors import InputError
from normtweak_core.lazy import lazy
from tasks.engine.artifacts import sweep_temporaries
from tasks.engine.environment import prepare_environment, set_variables, state_root
from tasks.engine.log_files import log_plain_lines
from tasks.engine.root_layout import MLARTIFACTS, MLFLOW_LOG
from tasks.registry.database import make_database
from tasks.server.api import (
    API_VARIABLE,
    HOST,
    EmbeddedServer,
    ServerError,
    announce_server,
    api_for_this_run,
    running_server,
    seconds_to_start,
    too_slow,
)
from tasks.server.cancelling import serving
from tasks.server.children import Child

log = logging.getLogger(__name__)
runs = lazy("tasks.engine.runs")  # with Prefect, which reads its settings when it is imported

PREFECT_PORT, MLFLOW_PORT = 4200, 5000
PORTS_TRIED = 50
MLFLOW_SECONDS_TO_START = 180.0  # at least
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
MODELS = "/#/models"  # MLflow's first page tells of other things and leads there by a switch only


def run_ui(options: argparse.Namespace) -> int:
    """Show the pages of Prefect and MLflow until told to stop; return the exit code.

    Args:
        options: ``prefect_port`` and ``mlflow_port``: integers, or None for the usual port or the
            next free one.

    Raises:
        InputError: A port that was asked for is taken.
        ServerError: A server did not come up.
        LockTimeoutError: Another `normtweak ui` or `serve` is just starting on the same root.
    """
    with first_line("ui: starts the pages of MLflow and Prefect"):
        set_variables(state_root())
        check_services(state_root())
        root = prepare_environment()
    log_plain_lines()
    with _stopped_by_signals(), contextlib.ExitStack() as stack:
        mlflow = MlflowPages(root, options.mlflow_port)
        stack.callback(mlflow.stop)
        mlflow.start()
        prefect = stack.enter_context(prefect_pages(root, options.prefect_port))
        mlflow.wait()
        _say(f"Runs, blocks and reports (Prefect): {page_of(prefect.url)}")
        _say(f"Registered versions (MLflow):       {mlflow.url}{MODELS}")
        _say("Ctrl-C ends both.")
        while prefect.runs() and mlflow.runs():
            time.sleep(0.5)
        name, file = ("MLflow", mlflow.log) if prefect.runs() else ("Prefect", prefect.log)
        raise ServerError(f"The {name} server must run on, but it ended.", file)
    return 0


def run_serve(options: argparse.Namespace) -> int:
    """Run the deployments of prefect.yaml on schedule until told to stop; return the exit code.

    Args:
        options: ``prefect_port``: an integer, or None for the usual port or the next free one.

    Raises:
        InputError: There is no prefect.yaml, it is not valid, or the port is taken.
        ServerError: The server did not come up.
        LockTimeoutError: Another `normtweak ui` or `serve` is just starting on the same root.
    """
    with first_line("serve: reads prefect.yaml and starts the server of Prefect"):
        specified = read_deployments(find_deployment_file())
        set_variables(state_root())
        check_services(state_root())
        root = prepare_environment()
    log_plain_lines()
    with (
        _stopped_by_signals(),
        prefect_pages(root, options.prefect_port) as prefect,
        serving(root),
    ):
        sweep_temporaries(root)
        _say(f"Schedules and runs (Prefect): {page_of(prefect.url)}")
        from flows.serving import serve_deployments  # Prefect, after the variables it reads are set

        titles = ", ".join(deployment.title for deployment in specified)
        serve_deployments(specified, lambda: _say(f"Serving {titles}. Ctrl-C ends it."))
        _say("Stopped.")
    return 0


@contextlib.contextmanager
def prefect_pages(root: Path, port: int | None) -> Iterator["PageServer"]:
    """Yield a Prefect server with pages: the user's, a running one, or one started here.

    Runs whose process was killed are marked Crashed first, so that no page shows them as running.

    Raises:
        InputError: The port is taken.
        ServerError: The server did not come up.
        LockTimeoutError: Another `normtweak ui` or `serve` is just starting on the same root.
    """
    with contextlib.ExitStack() as stack:
        server = PageServer(root, port)
        if url := os.environ.get(API_VARIABLE) or running_server(root):
            log.info("using the Prefect server at %s", url)
            server.url = url
        else:
            stack.callback(server.stop)
            server.start()
            server.wait()
            stack.enter_context(announce_server(root, server.url))
        stack.enter_context(api_for_this_run(root))
        runs.mark_dead_runs(root)
        yield server


class PageServer(EmbeddedServer):
    """Prefect's whole server, with pages and scheduler, in a child that ends with this process."""

    def __init__(self, root: Path, port: int | None):
        super().__init__(root)
        self.port = port
        self.log = root / "prefect" / "pages.log"

    def _listen(self) -> socket.socket:
        return listen(self.port, PREFECT_PORT, "--prefect-port")

    def _environment(self, port: int) -> dict[str, str]:
        return {
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            **os.environ,
            # The pages ask the API under this address; an argument would not reach them.
            "PREFECT_SERVER_API_HOST": HOST,
            "PREFECT_SERVER_API_PORT": str(port),
        }

    def runs(self) -> bool:
        """Tell whether the child process lives; true where it is another's server."""
        return self.child is None or self.child.runs()


class MlflowPages:
    """MLflow's pages over the registry of the state root, in a child that ends with this process.

    Where MLFLOW_TRACKING_URI names a server, nothing is started and that server's pages are meant.
    """

    def __init__(self, root: Path, port: int | None):
        self.root = root
        self.port = port
        self.log = root / MLFLOW_LOG
        self.url = os.environ[TRACKING_VARIABLE]
        self.own = not self.url.startswith(("http://", "https://"))
        self.child: Child | None = None

    def start(self) -> None:
        """Start the child process.

        Raises:
            InputError: The port is taken.
        """
        if not self.own:
            return
        store = self.url
        make_database(store)
        with listen(self.port, MLFLOW_PORT, "--mlflow-port") as listener:
            port = listener.getsockname()[1]
        self.url = f"http://{HOST}:{port}"
        serve = [sys.executable, "-P", "-m", "mlflow", "server", "--host", HOST]
        serve += ["--port", str(port), "--workers", "1", "--backend-store-uri", store]
        serve += ["--artifacts-destination", str(self.root / MLARTIFACTS)]
        # Its job runner would start further processes for features we do not use.
        environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
        self.child = Child("tasks.server.guarded_child", serve, environment, self.log)

    def wait(self) -> None:
        """Return when the server answers.

        Raises:
            ServerError: It ended, or did not answer in time.
        """
        limit = max(MLFLOW_SECONDS_TO_START, seconds_to_start())
        end = time.monotonic() + limit
        while self.own and not self._answers():
            ended = not self.runs()
            if ended or time.monotonic() > end:
                problem = "it ended" if ended else too_slow(limit)
                raise ServerError(f"The MLflow server must come up, but {problem}.", self.log)
            time.sleep(0.2)

    def runs(self) -> bool:
        """Tell whether the child process lives; true where it is another's server."""
        return self.child is None or self.child.runs()

    def stop(self) -> None:
        """End the child process in good order; harmless when it is not running."""
        if self.child is not None:
            self.child.stop()
        self.child = None

    def _answers(self) -> bool:
        # Not urllib: it would ask a proxy.
        connection = http.client.HTTPConnection(HOST, int(self.url.rpartition(":")[2]), timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()


def page_of(api_url: str) -> str:
    """Return the address of the pages of a Prefect server, given its API's."""
    return api_url.removesuffix("/").removesuffix("/api")


def listen(wanted: int | None, usual: int, option: str) -> socket.socket:
    """Return a listening socket on the port that was asked for, or the first free from the usual.

    Raises:
        InputError: The port that was asked for is taken, or none of those tried is free.
    """
    ports = range(usual, usual + PORTS_TRIED) if wanted is None else [wanted]
    for port in ports:
        try:
            return socket.create_server((HOST, port), backlog=128)
        except OSError as error:
            problem = error
    raise InputError(
        f"{option} must be a free port of this machine; {ports[0]} cannot be used ({problem}): "
        "give another"
    )


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """End the block, without an error, on Ctrl-C, SIGTERM, or when the terminal is closed."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # One that is ignored stays ignored: that is what nohup asks for.
    signals = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    except KeyboardInterrupt:
        _say("Stopped.")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the answer to the command


def _add_ui_arguments(parser: argparse.ArgumentParser) -> None:
    _add_port(parser, "--prefect-port", "port of the Prefect page")
    _add_port(parser, "--mlflow-port", "port of the MLflow page")


def _add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    _add_port(parser, "--prefect-port", "port of the Prefect page")


def _add_port(parser: argparse.ArgumentParser, flag: str, text: str) -> None:
    parser.add_argument(
        flag, type=_port, metavar="PORT", help=f"{text} (default: the usual one or the next free)"
    )


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535; found {text!r}")
    return int(text)


COMMANDS = {
    "ui": Command(
        "Start the Prefect server with its page and the MLflow page, and print where they are.",
        ["ui", "ui --prefect-port 4300 --mlflow-port 5100"],
        _add_ui_arguments,
        run_ui,
    ),
    "serve": Command(
        "Serve the deployments of prefect.yaml in this process until it is stopped.",
        ["serve", "serve --prefect-port 4300"],
        _add_serve_arguments,
        run_serve,
    ),
}
