"""One state root and one Prefect server for all tests of the tasks; programs that can be killed."""

import importlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.environment import FOLDERS, OUR_LOGGERS, default_variables
from tasks.server import api_for_this_run


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state root, for tests that need no server."""
    for folder in FOLDERS:
        (tmp_path / "state" / folder).mkdir(parents=True)
    monkeypatch.setenv("NORMTWEAK_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture(scope="session", autouse=True)
def engine_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state root of the session, with the environment set; torch may be imported already.

    Before any test, whichever file a process gets first, and Prefect with it: it reads its
    environment once, when it is imported, and some tests set another one for a while.
    """
    root = tmp_path_factory.mktemp("engine") / "state"
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        for name, value in default_variables(root).items():
            patch.setenv(name, value)
        for name in OUR_LOGGERS:
            logging.getLogger(name).setLevel(logging.INFO)
        importlib.import_module("prefect")
        yield root


@pytest.fixture(scope="session")
def session_api(engine_environment: Path) -> Iterator[str]:
    """The URL of a Prefect API on the root of the session."""
    with api_for_this_run(engine_environment) as url:
        yield url


@pytest.fixture
def engine(engine_environment: Path, session_api: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state root of the session, with a Prefect API set for this process."""
    monkeypatch.setenv("NORMTWEAK_HOME", str(engine_environment))
    return engine_environment


class Program:
    """A child process of a test, with its output in a file."""

    def __init__(self, arguments: list[str], output: Path, environment: dict[str, str]):
        self.output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **environment},
                cwd=Path(__file__).resolve().parents[2],
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def text(self) -> str:
        return self.output.read_text()

    def finish(self, seconds: float = 120) -> str:
        assert self.process.wait(seconds) == 0, self.text()
        return self.text()

    def until(self, condition: Callable[[], object], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.05)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """A function that starts a Python program; what still runs afterwards is killed by its pid."""
    started: list[Program] = []

    def start(*arguments: str, **environment: str) -> Program:
        output = tmp_path / f"program-{len(started)}.txt"
        started.append(Program(list(arguments), output, environment))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def wait_until(condition: Callable[[], object], seconds: float = 15) -> None:
    """Wait for a condition, and fail when it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.05)
