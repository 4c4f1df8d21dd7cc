"""What each command does once its arguments are known; imports what it needs and no more."""

import argparse
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.failures import EXIT_OK, exit_code, logged_to_file
from normtweak_core.errors import InputError
from tasks.environment import (
    REPOSITORY,
    default_variables,
    log_plain_lines,
    prepare_environment,
    state_root,
)

log = logging.getLogger(__name__)

# Prefect prints the traceback of a failed run; here a sentence and a log file take its place.
ENGINE_LEVEL_VARIABLE = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"


def run_quantize(options: argparse.Namespace) -> int:
    """Carry out a recipe and print what came of it."""
    from flows.params import load_recipe
    from flows.preflight import only_local, preflight

    recipe = load_recipe(options.recipe, options.overrides)
    os.environ.setdefault(ENGINE_LEVEL_VARIABLE, "CRITICAL")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it tells of its tables
    _set_variables(state_root())  # before preflight: it may have to ask torch for GPUs
    ready = preflight(recipe, state_root(), options.result)
    if only_local(recipe, ready.source):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    root = prepare_environment()

    def work() -> int:
        from flows.summary import print_summary
        from tasks.artifacts import write_atomically

        result = _flow_result("quantize", recipe, root)
        if options.result:
            text = json.dumps(result, indent=1) + "\n"
            write_atomically(options.result.resolve(), text.encode())
        print_summary(recipe.name, result)
        return EXIT_OK

    from flows.cleaning import in_use

    with in_use(root):
        return _logged("quantize", work)


def run_polynomial(options: argparse.Namespace) -> int:
    """Carry out a polynomial study and print what it says."""
    from flows.polynomial_recipe import load_polynomial_recipe, study_device
    from flows.preflight import check_result_file, check_state_root

    recipe = load_polynomial_recipe(options.recipe, options.overrides)
    os.environ.setdefault(ENGINE_LEVEL_VARIABLE, "CRITICAL")
    _set_variables(state_root())  # before the device: torch may have to look for GPUs
    if options.result is not None:
        check_result_file(options.result)
    check_state_root(state_root())
    study_device(recipe)
    root = prepare_environment()

    def work() -> int:
        from flows.polynomial_report import print_study
        from tasks.artifacts import write_atomically

        result = _flow_result("polynomial", recipe, root)
        if options.result:
            text = json.dumps(result, indent=1) + "\n"
            write_atomically(options.result.resolve(), text.encode())
        print_study(recipe.name, result)
        return EXIT_OK

    from flows.cleaning import in_use

    with in_use(root):
        return _logged("polynomial", work)


def _flow_result(name: str, recipe: Any, root: Path) -> dict[str, Any]:
    """Carry out the flow of a name, which its module has too."""
    from tasks.artifacts import sweep_temporaries
    from tasks.server import api_for_this_run

    sweep_temporaries(root)
    with api_for_this_run(root):
        from tasks.runs import mark_dead_runs, own_flow_runs

        flow = getattr(importlib.import_module(f"flows.{name}"), name)
        mark_dead_runs(root)
        with own_flow_runs(root):
            return flow(recipe)


def run_plan(options: argparse.Namespace) -> int:
    """Print what a recipe would need; write nothing."""
    from flows.params import load_recipe
    from flows.plan import plan_lines, require_local_model, scratch_environment
    from flows.preflight import preflight

    recipe = load_recipe(options.recipe, options.overrides)
    require_local_model(recipe.model)
    with scratch_environment(state_root()):
        ready = preflight(recipe, state_root())
        lines = plan_lines(recipe, ready, state_root())
    for line in [*lines, *(f"warning {text}" for text in ready.warnings)]:
        _show(line)
    return EXIT_OK


def run_verify(options: argparse.Namespace) -> int:
    """Reopen an export with an independent reader and print what was compared."""
    from flows.verifying import report_lines
    from normtweak_core.export.verify import reader_python, verify_export

    reader = reader_python(options.export_dir, REPOSITORY)

    def work() -> int:
        for line in report_lines(options.export_dir, verify_export(options.export_dir, reader)):
            _show(line)
        return EXIT_OK

    return _logged("verify", work, terminal=False)


def run_clean(options: argparse.Namespace) -> int:
    """Remove what can be made again and print what that was."""
    from flows.budget import readable_bytes
    from flows.cleaning import clean

    root = state_root()
    removed = clean(root, options.everything)
    for one in removed:
        if one.files:
            noun = "file" if one.files == 1 else "files"
            _show(f"{one.kind}: {one.files} {noun}, {readable_bytes(one.size)}")
    total = sum(one.size for one in removed)
    _show(f"removed {total} bytes ({readable_bytes(total)}) under {root}")
    return EXIT_OK


def run_reference_train(options: argparse.Namespace) -> int:
    """Train a reference model, or go on with its training."""
    from normtweak_core.reference import architectures

    if options.steps is not None and options.steps < 1:
        raise InputError(f"--steps must be at least 1; found {options.steps}: raise it.")
    root = state_root()
    out = options.out or Path(architectures.__file__).with_name("models") / options.name
    work_folder = options.work or root / "reference" / options.name
    for flag, folder in (("--out", out), ("--work", work_folder)):
        _require_folder(flag, folder)
    _set_variables(root)

    def work() -> int:
        from normtweak_core.reference.train import TrainingPlan, train_reference

        plan = TrainingPlan(**({} if options.steps is None else {"steps": options.steps}))
        losses = train_reference(options.name, out, work_folder, plan)
        for name, value in losses.items():
            _show(f"{name}: {value:.4f} nats per token")
        _show(f"written to {out}; the state under {work_folder} can be removed")
        return EXIT_OK

    return _logged("reference", work)


def run_ui(options: argparse.Namespace) -> int:
    """Start the pages of Prefect and MLflow."""
    from flows.serving import run_ui as run

    return run(options)


def run_serve(options: argparse.Namespace) -> int:
    """Serve the scheduled deployments."""
    from flows.serving import run_serve as run

    return run(options)


def _set_variables(root: Path) -> None:
    for name, value in default_variables(root).items():
        os.environ.setdefault(name, value)


def _require_folder(flag: str, folder: Path) -> None:
    from flows.budget import existing_folder

    there = existing_folder(folder.absolute())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"{flag} must be a folder you may write to; {folder} cannot be made: {there} is "
            f"{'not writable' if there.is_dir() else 'a file'}."
        )


def _logged(command: str, work: Callable[[], int], terminal: bool = True) -> int:
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


def _show(line: str) -> None:
    print(line, file=sys.stdout, flush=True)  # noqa: T201
