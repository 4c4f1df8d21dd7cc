"""What each command does once its arguments are known; imports what it needs and no more."""

import argparse
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
    """Quantize by a recipe and print what came of it."""
    from flows.params import load_recipe
    from flows.preflight import preflight

    recipe = load_recipe(options.recipe, options.overrides)

    def flow() -> dict[str, Any]:
        from flows.quantize import quantize

        return quantize(recipe)

    return _carry_out("quantize", recipe, recipe.calibration, preflight, flow, options.result)


def run_ternary(options: argparse.Namespace) -> int:
    """Train by a recipe until the model is ternary, and print what came of it."""
    from flows.ternary_preflight import ternary_preflight
    from flows.ternary_recipe import load_ternary_recipe

    recipe = load_ternary_recipe(options.recipe, options.overrides)

    def flow() -> dict[str, Any]:
        from flows.ternary import ternary

        return ternary(recipe)

    data = recipe.ternary.data
    return _carry_out("ternary", recipe, data, ternary_preflight, flow, options.result)


def run_finetune(options: argparse.Namespace) -> int:
    """Train an export on by a recipe, and print what came of it."""
    from flows.finetune_preflight import finetune_preflight
    from flows.finetune_recipe import load_finetune_recipe

    recipe = load_finetune_recipe(options.recipe, options.overrides)

    def flow() -> dict[str, Any]:
        from flows.finetune import finetune

        return finetune(recipe)

    data = recipe.finetune.data
    return _carry_out("finetune", recipe, data, finetune_preflight, flow, options.result)


def run_polynomial(options: argparse.Namespace) -> int:
    """Carry out a polynomial study and print what it says."""
    from flows.polynomial_recipe import load_polynomial_recipe, study_device
    from flows.preflight import check_result_file, check_state_root

    recipe = load_polynomial_recipe(options.recipe, options.overrides)
    os.environ.setdefault(ENGINE_LEVEL_VARIABLE, "CRITICAL")
    _set_variables(state_root())
    if options.result is not None:
        check_result_file(options.result)
    check_state_root(state_root())
    study_device(recipe)

    def flow() -> dict[str, Any]:
        from flows.polynomial import polynomial

        return polynomial(recipe)

    def show(result: dict[str, Any]) -> None:
        from flows.polynomial_report import print_study

        print_study(recipe.name, result)

    return _run_flow("polynomial", flow, options.result, show)


def _carry_out(
    command: str,
    recipe: Any,
    data: Any,
    check: Callable[..., Any],
    flow: Callable[[], dict[str, Any]],
    result_file: Path | None,
) -> int:
    """Check a recipe of a language model, run its flow and print the summary."""
    from flows.preflight import only_local

    os.environ.setdefault(ENGINE_LEVEL_VARIABLE, "CRITICAL")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it tells of its tables
    _set_variables(state_root())  # before preflight: it may have to ask torch for GPUs
    ready = check(recipe, state_root(), result_file)
    if only_local(data, ready.source):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")

    def show(result: dict[str, Any]) -> None:
        from flows.summary import print_summary

        print_summary(recipe.name, result)

    return _run_flow(command, flow, result_file, show)


def _run_flow(
    command: str,
    flow: Callable[[], dict[str, Any]],
    result_file: Path | None,
    show: Callable[[dict[str, Any]], None],
) -> int:
    """Run a flow on a server of its own or the one that runs; write and show the result."""
    root = prepare_environment()

    def work() -> int:
        from tasks.artifacts import write_atomically

        result = _flow_result(flow, root)
        if result_file:
            text = json.dumps(result, indent=1) + "\n"
            write_atomically(result_file.resolve(), text.encode())
        show(result)
        return EXIT_OK

    from flows.cleaning import in_use

    with in_use(root):
        return _logged(command, work)


def _flow_result(flow: Callable[[], dict[str, Any]], root: Path) -> dict[str, Any]:
    from tasks.artifacts import sweep_temporaries
    from tasks.server import api_for_this_run

    sweep_temporaries(root)
    with api_for_this_run(root):
        from tasks.runs import mark_dead_runs, own_flow_runs

        mark_dead_runs(root)
        with own_flow_runs(root):
            return flow()


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


def run_promote(options: argparse.Namespace) -> int:
    """Point an alias to a version and print what changed."""
    from flows.promoting import promote

    _set_variables(state_root())
    _show(promote(options.uri, options.alias))
    return EXIT_OK


def run_rollback(options: argparse.Namespace) -> int:
    """Point an alias to the version it pointed to before, and print what changed."""
    from flows.promoting import rollback

    _set_variables(state_root())
    _show(rollback(options.name, options.alias))
    return EXIT_OK


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
