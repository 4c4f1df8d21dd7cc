"""Log lines on the terminal and in the file of a command, plain or as JSON."""

import contextlib
import datetime
import json
import logging
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

from normtweak_core.errors import InputError
from tasks.engine.environment import LOG_VARIABLE, OUR_LOGGERS, state_root
from tasks.engine.root_layout import LOGS

TERMINAL = ("%(asctime)s %(message)s", "%H:%M:%S")
_at_hand: ContextVar[tuple[str, str] | None] = ContextVar("at_hand", default=None)


@contextlib.contextmanager
def working_on(stage: str, part: str) -> Iterator[None]:
    """Have lines as JSON name a stage and its part, also those that are told around its task."""
    before = _at_hand.set((stage, part))
    try:
        yield
    finally:
        _at_hand.reset(before)


@contextlib.contextmanager
def logged_to_file(command: str) -> Iterator[Path]:
    """Write our log lines to a file of this command as well; nothing logged, no file.

    Yields:
        The file: under the state root, or among the temporary files where there is no root.
    """
    path = log_file(command)
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(line_format("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in OUR_LOGGERS:
        logging.getLogger(name).addHandler(handler)
    try:
        yield path
    finally:
        for name in OUR_LOGGERS:
            logging.getLogger(name).removeHandler(handler)
        handler.close()


def log_file(command: str) -> Path:
    """Return where the log of this process's command goes; its folder exists.

    Under the state root, and among the temporary files where there is no root or none that can be
    written to: whatever fails is on its way to being told.
    """
    name = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{command}-{os.getpid()}.log"
    with contextlib.suppress(InputError, OSError):
        root = state_root()
        if root.is_dir():
            (root / LOGS).mkdir(exist_ok=True)
            if os.access(root / LOGS, os.W_OK | os.X_OK):
                return root / LOGS / name
    return Path(tempfile.gettempdir()) / f"normtweak-{name}"


class _StandardError(logging.StreamHandler):
    """Writes to what ``sys.stderr`` is now: a live progress bar puts its own stream there."""

    def __init__(self, level: int):
        logging.Handler.__init__(self, level)  # the other one would keep today's stream

    @property
    def stream(self) -> TextIO:
        return sys.stderr


def log_plain_lines(level: int = logging.INFO) -> logging.Handler:
    """Write this project's own log lines to standard error, a line each.

    Returns:
        The handler, for a caller that wants to remove it.
    """
    handler = _StandardError(level)
    handler.setFormatter(line_format(*TERMINAL))
    for name in OUR_LOGGERS:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False  # Prefect's console handler would print warnings a second time
    return handler


def line_format(plain: str, times: str | None = None) -> logging.Formatter:
    """Return how lines are written: as given, or as JSON where `NORMTWEAK_LOG` says so."""
    as_json = os.environ.get(LOG_VARIABLE) == "json"
    return _JsonLines() if as_json else logging.Formatter(plain, datefmt=times)


def traceback_text(error: BaseException) -> str:
    """Return a traceback as a log holds it."""
    lines = traceback.format_exception(error)
    if os.environ.get(LOG_VARIABLE) != "json":
        return "".join(lines)
    told = (type(error), error, error.__traceback__)
    message = "".join(traceback.format_exception_only(error)).strip()
    record = logging.LogRecord("normtweak", logging.ERROR, "", 0, message, None, told)
    return _JsonLines().format(record) + "\n"


class _JsonLines(logging.Formatter):
    """A line is an object: time, level, logger, message, pid, and of a run what it works on."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        told = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            **_work_at_hand(),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def _work_at_hand() -> dict[str, Any]:
    """Return run, stage, part and block that this thread works on."""
    told: dict[str, Any] = {}
    context = sys.modules.get("prefect.context")  # not loaded: this is no flow run
    if context and (flow := context.FlowRunContext.get()) and flow.flow_run:
        told |= {"run": str(flow.flow_run.id), "run_name": flow.flow_run.name}
    if (at_hand := _at_hand.get()) is not None:
        told |= dict(zip(("stage", "part"), at_hand, strict=True))
        if block := re.fullmatch(r".*\bblock (\d+)", told["part"]):
            told["block"] = int(block[1])
    return told
