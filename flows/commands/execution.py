"""How a command is carried out: its variables, its server, its log, and where its result goes."""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.commands.failures import EXIT_OK, exit_code
from normtweak_core.errors import InputError
from normtweak_core.lazy import lazy
from normtweak_core.paths import given_path
from tasks.engine.artifacts import sweep_temporaries, write_atomically
from tasks.engine.cleaning import in_use
from tasks.engine.environment import prepare_environment, set_variables, state_root
from tasks.engine.log_files import log_plain_lines, logged_to_file
from tasks.registry.names import REGISTERED, parse_address
from tasks.registry.reachable import existing_registry
from tasks.server.api import api_for_this_run

runs = lazy("tasks.engine.runs")  # with Prefect, which reads its settings when it is imported

_REGISTRY = ("tasks.registry.promotion", "mlflow.store.tracking.sqlalchemy_store")
# Beside the module of its flow, what a command always comes to; imported while its server comes
# up: two seconds of it in all.
MODULES = dict.fromkeys(("quantize", "ternary", "finetune"), _REGISTRY)


def quiet_libraries() -> None:
    """Let the libraries of a run tell of failures alone; what the user has set stays."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it tells of its tables


def run_flow(
    command: str,
    flow: Callable[[], dict[str, Any]],
    result_file: Path | None,
    show: Callable[[dict[str, Any]], int | None],
) -> int:
    """Run a flow on a server of its own or the one that runs; write and show the result.

    Args:
        command: Its name, for the log.
        flow: Runs it.
        result_file: Where the result shall go, if anywhere.
        show: Shows it; what it returns is the exit code, None stands for success.
    """
    root = prepare_environment()

    def work() -> int:
        result = _flow_result(flow, root, [f"flows.{command}", *MODULES.get(command, ())])
        if result_file:
            text = json.dumps(result, indent=1) + "\n"
            write_atomically(result_file.resolve(), text.encode())
        code = show(result)
        return EXIT_OK if code is None else code

    with in_use(root):
        return logged(command, work)


def _flow_result(
    flow: Callable[[], dict[str, Any]], root: Path, modules: list[str]
) -> dict[str, Any]:
    sweep_temporaries(root)
    with api_for_this_run(root, modules):
        runs.mark_dead_runs(root)
        with runs.own_flow_runs(root):
            return flow()


def logged(command: str, work: Callable[[], int], terminal: bool = True) -> int:
    """Carry out `work` with our lines in a log file, and on the terminal if wanted."""
    for name in ("flows", "tasks", "normtweak_core"):
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).propagate = False
    if terminal:
        log_plain_lines()
    with logged_to_file(command) as file:
        try:
            return work()
        except InputError:
            raise
        except Exception as error:  # reported with the log that holds what led to it
            return exit_code(error, command, file)


def of_export(text: str, command: str, of_folder: Callable, of_version: Callable) -> Any:
    """Return what a command makes of the folder of an export, or of a registered version.

    Args:
        text: The folder, or models:/NAME/VERSION.
        command: Its name, for messages.
        of_folder: Takes the folder.
        of_version: Takes the address of the registry and that of the version.

    Raises:
        InputError: It is neither, or there is no registry.
    """
    if not text.startswith(REGISTERED):
        return of_folder(given_path(text, "EXPORT"))
    address = parse_address(text)
    set_variables(state_root())
    return of_version(existing_registry(state_root(), command), address)


def print_line(line: str) -> None:
    """Print a line of the answer."""
    print(line, file=sys.stdout, flush=True)  # noqa: T201
