"""State roots without a server, and programs that can be killed."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.engine.environment import FOLDERS


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state root, for tests that need no server."""
    for folder in FOLDERS:
        (tmp_path / "state" / folder).mkdir(parents=True)
    monkeypatch.setenv("NORMTWEAK_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture(scope="session", autouse=True)
def engine_first(engine_environment: Path) -> None:
    """Set the environment of the engine before any of these tests."""


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


@pytest.fixture(scope="module")
def caching(engine_environment):
    """The module under test, imported after the environment of the session is set."""
    return importlib.import_module("tasks.engine.caching")
