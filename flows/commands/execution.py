"""How a command is carried out: its variables, its server, its log, and where its result goes."""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.commands.failures import EXIT_OK, exit_code
from flows.commands.first_line import first_line
from normtweak_core.errors import InputError
from tasks.engine.environment import log_plain_lines, prepare_environment, set_variables, state_root
from tasks.engine.log_files import logged_to_file

# Prefect prints the traceback of a failed run; here a sentence and a log file take its place.
_REGISTRY = ("tasks.registry.promotion", "mlflow.store.tracking.sqlalchemy_store")
# Beside the module of its flow, what a command always comes to: two seconds of it in all.
MODULES = {
    "quantize": (*_REGISTRY, "flows.reports.quantize_page", "flows.reports.figures.drift_channels"),
    "ternary": _REGISTRY,
    "finetune": _REGISTRY,
}
ENGINE_LEVEL_VARIABLE = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"


def carry_out(
    command: str,
    recipe: Any,
    data: Any,
    check: Callable[..., Any],
    flow: Callable[[], dict[str, Any]],
    result_file: Path | None,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """Check a recipe of a language model, run its flow and print the summary.

    ``show`` prints another one than that of an export.
    """
    from flows.checks.inputs import only_local

    os.environ.setdefault(ENGINE_LEVEL_VARIABLE, "CRITICAL")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it tells of its tables
    set_variables(state_root())  # before preflight: it may have to ask torch for GPUs
    with first_line(f"{command} {recipe.name}: begins; all state lies under {state_root()}"):
        ready = check(recipe, state_root(), result_file)
    if only_local(data, recipe.evaluation, ready.source):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")

    def show_export(result: dict[str, Any]) -> None:
        from flows.reports.terminal import print_summary

        print_summary(recipe.name, result)

    return run_flow(command, flow, result_file, show or show_export)


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
        from tasks.engine.artifacts import write_atomically

        result = _flow_result(flow, root, imported_meanwhile(command))
        if result_file:
            text = json.dumps(result, indent=1) + "\n"
            write_atomically(result_file.resolve(), text.encode())
        code = show(result)
        return EXIT_OK if code is None else code

    from tasks.engine.cleaning import in_use

    with in_use(root):
        return logged(command, work)


def imported_meanwhile(command: str) -> list[str]:
    """Return the modules that a command will need, to be imported while its server comes up."""
    return [f"flows.{command}", *MODULES.get(command, ())]


def _flow_result(
    flow: Callable[[], dict[str, Any]], root: Path, modules: list[str]
) -> dict[str, Any]:
    from tasks.engine.artifacts import sweep_temporaries
    from tasks.server.api import api_for_this_run

    sweep_temporaries(root)
    with api_for_this_run(root, modules):
        from tasks.engine.runs import mark_dead_runs, own_flow_runs

        mark_dead_runs(root)
        with own_flow_runs(root):
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


def print_line(line: str) -> None:
    """Print a line of the answer."""
    print(line, file=sys.stdout, flush=True)  # noqa: T201
