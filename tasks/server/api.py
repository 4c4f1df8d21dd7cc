"""The Prefect API a run talks to: the user's, that of `normtweak ui` or `serve`, or its own.

Prefect would start a temporary server by itself, but that one survives a SIGKILL of its run and
drops the last task-run records at exit. Ours (`tasks.server.api_child`) ends with the process that
started it, and is stopped only after what it was sent has been written.
"""

import contextlib
import importlib
import json
import logging
import os
import select
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from normtweak_core.errors import ForeseenError
from normtweak_core.lazy import lazy
from tasks.engine.artifacts import write_atomically
from tasks.engine.locks import exclusive, held
from tasks.server.children import Child, last_lines

logger = logging.getLogger(__name__)
events = lazy("prefect.events.worker")
handlers = lazy("prefect.logging.handlers")

HOST = "127.0.0.1"
API_VARIABLE = "PREFECT_API_URL"
TIMEOUT_VARIABLE = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"

# Only what a server for one run does not need. Users' values win here too.
_CHILD_DEFAULTS = {
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}
_embedded: set[str] = set()  # addresses of servers that this process has started for its run
_CHILD_VARIABLES = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",  # no scheduler, no late-run marking
    "OMP_NUM_THREADS": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "0",
}


class ServerError(ForeseenError):
    """A server did not come up, ended, or does not answer."""

    def __init__(self, problem: str, log: Path | None = None):
        told = f"{problem} See {log}" if log else problem
        super().__init__(f"{told}\nLast lines of it:\n{last_lines(log)}" if log else problem)


@contextlib.contextmanager
def api_for_this_run(root: Path, modules: Iterable[str] = ()) -> Iterator[str]:
    """Yield the URL of a Prefect API that answers, with PREFECT_API_URL set to it.

    Enter it before Prefect is imported: the server starts at once, and Prefect is imported here
    while it comes up.

    Args:
        root: The state root.
        modules: What else to import meanwhile, which the run will need anyway.

    Raises:
        ServerError: The embedded server ended or did not answer in time.
    """
    if url := os.environ.get(API_VARIABLE):
        yield url
        return
    if url := running_server(root):
        with _api_url(url):
            yield url
        return
    server = EmbeddedServer(root)
    server.start()
    try:
        _embedded.add(server.url)
        with _api_url(server.url):
            for module in ("prefect.main", *modules):  # read while the server comes up
                importlib.import_module(module)
            server.wait()
            try:
                yield server.url
            finally:
                _send_what_is_queued()
    finally:
        server.stop()


def is_embedded() -> bool:
    """Tell whether the API of this run ends with it and shows no pages."""
    return os.environ.get(API_VARIABLE) in _embedded


def running_server(root: Path) -> str | None:
    """Return the API URL of the `normtweak ui` or `serve` that runs on this root, if any."""
    if not held(_lock(root)):
        return None
    try:
        return json.loads(_announcement(root).read_text())["api_url"]
    except FileNotFoundError:  # it holds the lock and is still coming up
        return None


@contextlib.contextmanager
def announce_server(root: Path, api_url: str) -> Iterator[None]:
    """Make runs on this root use a server of this process, for the duration of the block.

    Raises:
        LockTimeoutError: Another `normtweak ui` or `serve` runs on the same root.
    """
    announcement = _announcement(root)
    with exclusive(
        _lock(root), timeout=1, message=f"only one normtweak ui or serve may run on {root}"
    ):
        write_atomically(announcement, json.dumps({"api_url": api_url}).encode())
        try:
            yield
        finally:
            announcement.unlink(missing_ok=True)


class EmbeddedServer:
    """Prefect's API on a free local port, in a child process that ends when this one does."""

    def __init__(self, root: Path):
        self.root = root
        self.log = root / "prefect" / "server.log"
        self.url = ""
        self.child: Child | None = None
        self._ready = -1
        self._started = 0.0
        self._migration = contextlib.ExitStack()

    def start(self) -> None:
        """Start the child process; its URL is known at once, it answers after `wait`."""
        self._started = time.monotonic()
        migrate = self._must_migrate()
        # Our own descriptors: the socket's port belongs to us from here on, with no gap in which
        # another process could take it.
        with self._listen() as listener:
            port = listener.getsockname()[1]
            self.url = f"http://{HOST}:{port}/api"
            self._ready, child_ready = os.pipe()
            environment = self._environment(port)
            environment |= {API_VARIABLE: self.url, "PREFECT__SERVER_FINAL": "1"}
            if not migrate:
                environment["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] = "false"
            self.child = Child(
                "tasks.server.api_child",
                [
                    f"--socket={listener.fileno()}",
                    f"--ready={child_ready}",
                    f"--root={self.root}",
                ],
                environment,
                self.log,
                inherited=(listener.fileno(), child_ready),
            )
        os.close(child_ready)

    def _listen(self) -> socket.socket:
        return socket.create_server((HOST, 0), backlog=128)

    def _environment(self, port: int) -> dict[str, str]:
        return {**_CHILD_DEFAULTS, **os.environ, **_CHILD_VARIABLES}

    def wait(self) -> None:
        """Return when the server answers.

        Raises:
            ServerError: It ended, or did not answer within the time limit.
        """
        limit = seconds_to_start()
        left = max(0.0, self._started + limit - time.monotonic())
        readable, _, _ = select.select([self._ready], [], [], left)
        # Readable without a byte: the child is gone.
        if not readable or not os.read(self._ready, 1):
            problem = "it ended" if readable else too_slow(limit)
            if readable and self.child:
                problem += f" with exit code {self.child.process.wait()}"
            self.stop()
            raise ServerError(f"The embedded Prefect server must come up, but {problem}.", self.log)
        remember_migration(self._database)
        self._migration.close()
        logger.debug("embedded server up in %.1f s", time.monotonic() - self._started)

    def stop(self) -> None:
        """End the child process in good order; harmless when it is not running."""
        self._migration.close()
        if self.child is not None:
            os.close(self._ready)
            self.child.stop()
        self.child = None

    def _must_migrate(self) -> bool:
        """Tell whether the database may need tables, and if so keep others from making them too."""
        if any("DATABASE_CONNECTION_URL" in name for name in os.environ):
            return True
        if is_migrated(self._database):
            return False
        limit = seconds_to_start()
        self._migration.enter_context(
            exclusive(
                self.root / "locks" / "migration.lock",
                timeout=limit,
                message=f"setting up the database of {self.root} (give it longer with "
                f"{TIMEOUT_VARIABLE})",
            )
        )
        return not is_migrated(self._database)

    @property
    def _database(self) -> Path:
        return Path(os.environ.get("PREFECT_HOME", self.root / "prefect")) / "prefect.db"


def seconds_to_start() -> float:
    """Return how long a server may take to come up: Prefect's own variable says it."""
    return float(os.environ.get(TIMEOUT_VARIABLE, "120"))


def too_slow(limit: float) -> str:
    """Return what is said of a server that took longer."""
    return f"it did not answer within {limit:g} s; give it longer with {TIMEOUT_VARIABLE}"


def remember_migration(database: Path) -> None:
    """Note beside a database of Prefect's that its tables are those of the installed version."""
    if not is_migrated(database) and database.exists():
        write_atomically(_marker(database), json.dumps(_schema(database)).encode())


def is_migrated(database: Path) -> bool:
    """Tell whether `remember_migration` was called for this very file and the installed version."""
    try:
        return json.loads(_marker(database).read_text()) == _schema(database)
    except (FileNotFoundError, ValueError):
        return False


def _schema(database: Path) -> dict[str, str | int]:
    # The inode tells a database that was deleted and made again from the one we migrated.
    return {"prefect": metadata.version("prefect"), "inode": database.stat().st_ino}


def _marker(database: Path) -> Path:
    return database.with_name("migrated.json")


def _lock(root: Path) -> Path:
    return root / "locks" / "server.lock"


def _announcement(root: Path) -> Path:
    return root / "prefect" / "server.json"


@contextlib.contextmanager
def _api_url(url: str) -> Iterator[None]:
    os.environ[API_VARIABLE] = url
    _reread_settings()
    try:
        yield
    finally:
        del os.environ[API_VARIABLE]
        _reread_settings()


def _reread_settings() -> None:
    # Prefect reads its environment at import; needed where that happened before.
    context = sys.modules.get("prefect.context")
    if context is not None:
        context.refresh_global_settings_context()


def _send_what_is_queued() -> None:
    """Wait until the log lines and events of this process have reached the server."""
    for worker in (handlers.APILogWorker, events.EventsWorker):
        worker.drain_all(timeout=5, at_exit=False)
