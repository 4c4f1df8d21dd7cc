"""What every flow does around its body: it owns its run, is heard, and heeds a cancel.

A command has its log file and its lines on the terminal from `flows.commands.execution`. Runs that
`normtweak serve` or a Prefect worker starts are processes of their own, with Prefect's logging
alone: they get both here, and on the terminal only what happens once a run.
"""

import contextlib
import functools
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.states import Cancelled

from tasks.engine.artifacts import keep_hashes
from tasks.engine.environment import OUR_LOGGERS, peak_rss_bytes, state_root
from tasks.engine.live_page import moving
from tasks.engine.log_files import log_plain_lines, logged_to_file
from tasks.engine.runs import own_run
from tasks.server.cancelling import RunCancelled, watched
from tasks.server.ending import CANCEL, end_within, ended_by
from tasks.server.ranks import peak_of_ranks

# What happens once a run: these lines and warnings are all that a service shows on its terminal.
milestones = logging.getLogger("flows.milestones")

CANCELLED = "Cancelled on request; finished stages are kept, and the next run goes on from there."


def operated(body: Callable[..., Any]) -> Callable[..., Any]:
    """Return the body of a flow, owned, logged, and ended in state Cancelled when that is asked.

    Its result also tells what the run took, and which it was.
    """

    @functools.wraps(body)  # Prefect reads parameters and help from what is wrapped
    def carried_out(*arguments: Any, **named: Any) -> Any:
        began = time.monotonic()
        own_run(state_root(), flow_run.id)
        keep_hashes()
        with _heard(f"{flow_run.flow_name} {flow_run.name}"):
            try:
                with moving(flow_run.id, _name(arguments)), watched(flow_run.id):
                    result = body(*arguments, **named)
                    return result | _spent(began) if isinstance(result, dict) else result
            except RunCancelled:
                end_within(*CANCEL)
                milestones.info("cancelled; finished stages are kept")
                return Cancelled(message=CANCELLED)
            except BaseException as error:
                if (end := ended_by(error)) is not None:
                    end_within(*end)
                raise

    return carried_out


def _name(arguments: tuple[Any, ...]) -> str:
    """Return the name of the recipe that a flow was given, or of the flow where that has none."""
    name = getattr(arguments[0], "name", None) if arguments else None
    return name if isinstance(name, str) else flow_run.flow_name


def _spent(began: float) -> dict[str, Any]:
    return {
        "seconds": time.monotonic() - began,
        "peak_rss_bytes": peak_rss_bytes() + peak_of_ranks(),
        "flow_run_id": str(flow_run.id),
    }


@contextlib.contextmanager
def _heard(name: str) -> Iterator[None]:
    """Send our lines to the page of the run; where no command does it, also write and show them."""
    loggers = [logging.getLogger(one) for one in OUR_LOGGERS]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        # A worker's process has read Prefect's settings before it was told which loggers are ours.
        if not any(isinstance(handler, APILogHandler) for handler in logger.handlers):
            logger.addHandler(APILogHandler())
    if any(isinstance(handler, logging.FileHandler) for handler in loggers[0].handlers):
        yield
        return
    propagate = [logger.propagate for logger in loggers]
    terminal = log_plain_lines()
    terminal.addFilter(_is_milestone)
    began = time.monotonic()
    try:
        with logged_to_file(flow_run.flow_name) as file:
            milestones.info("%s started; log: %s", name, file)
            try:
                yield
            except BaseException as error:
                with file.open("a", encoding="utf-8") as stream:
                    stream.writelines(traceback.format_exception(error))
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
                milestones.warning("%s ended: %s", name, reason)
                raise
            milestones.info("%s ended after %.0f s", name, time.monotonic() - began)
    finally:
        for logger, before in zip(loggers, propagate, strict=True):
            logger.removeHandler(terminal)
            logger.propagate = before


def _is_milestone(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name == milestones.name
