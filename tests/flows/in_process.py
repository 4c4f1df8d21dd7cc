"""A command carried out inside the process of a test, which it leaves as it was."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from flows.cli import main
from tasks.engine.environment import OUR_LOGGERS


@contextlib.contextmanager
def process_left_alone(**variables: str) -> Iterator[None]:
    """Take back what a command does to variables and loggers; set some variables before."""
    before = dict(os.environ)
    loggers = [logging.getLogger(name) for name in OUR_LOGGERS]
    states = [(one.propagate, one.level, list(one.handlers)) for one in loggers]
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        for one, (propagate, level, handlers) in zip(loggers, states, strict=True):
            one.propagate, one.level, one.handlers[:] = propagate, level, handlers


def run_command(root: Path, *arguments: str, **variables: str) -> int:
    """Return the exit code of a command on a state root."""
    with process_left_alone(NORMTWEAK_HOME=str(root), **variables):
        return main(list(arguments))


def rebuild_result(root: Path, uri: str, file: Path, **variables: str) -> tuple[int, dict]:
    """Return exit code and result of a rebuild."""
    code = run_command(root, "rebuild", uri, "--result", str(file), **variables)
    return code, json.loads(file.read_text())
