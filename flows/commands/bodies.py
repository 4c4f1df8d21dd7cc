"""What each command does once its arguments are known; imports what it needs and no more."""

import argparse
import contextlib
import os
from pathlib import Path
from typing import Any

from flows.commands.execution import (
    ENGINE_LEVEL_VARIABLE,
    carry_out,
    logged,
    print_line,
    run_flow,
)
from flows.commands.failures import EXIT_OK
from flows.commands.first_line import first_line
from normtweak_core.errors import InputError
from tasks.engine.environment import (
    REPOSITORY,
    set_variables,
    state_root,
)
from tasks.engine.root_layout import REFERENCE


def run_quantize(options: argparse.Namespace) -> int:
    """Quantize by a recipe and print what came of it."""
    from flows.checks.inputs import preflight
    from flows.recipes.quantize import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)

    def flow() -> dict[str, Any]:
        from flows.quantize import quantize

        return quantize(recipe)

    return carry_out("quantize", recipe, recipe.calibration, preflight, flow, options.result)


def run_ternary(options: argparse.Namespace) -> int:
    """Train by a recipe until the model is ternary, and print what came of it."""
    from flows.checks.ternary import ternary_preflight
    from flows.recipes.ternary import load_ternary_recipe

    recipe = load_ternary_recipe(options.recipe, options.overrides)

    def flow() -> dict[str, Any]:
        from flows.ternary import ternary

        return ternary(recipe)

    data = recipe.ternary.data
    return carry_out("ternary", recipe, data, ternary_preflight, flow, options.result)


def run_finetune(options: argparse.Namespace) -> int:
    """Train an export on by a recipe, and print what came of it."""
    from flows.checks.finetune import finetune_preflight
    from flows.recipes.finetune import load_finetune_recipe

    recipe = load_finetune_recipe(options.recipe, options.overrides)

    def flow() -> dict[str, Any]:
        from flows.finetune import finetune

        return finetune(recipe)

    data = recipe.finetune.data
    return carry_out("finetune", recipe, data, finetune_preflight, flow, options.result)


def run_polynomial(options: argparse.Namespace) -> int:
    """Carry out a polynomial study and print what it says."""
    from flows.checks.services import check_services
    from flows.checks.written_places import check_result_file, check_state_root
    from flows.recipes.polynomial import load_polynomial_recipe, study_device

    recipe = load_polynomial_recipe(options.recipe, options.overrides)
    os.environ.setdefault(ENGINE_LEVEL_VARIABLE, "CRITICAL")
    set_variables(state_root())
    with first_line(f"polynomial {recipe.name}: begins; all state lies under {state_root()}"):
        if options.result is not None:
            check_result_file(options.result)
        check_state_root(state_root())
        check_services(state_root(), registry=False)
        study_device(recipe)

    def flow() -> dict[str, Any]:
        from flows.polynomial import polynomial

        return polynomial(recipe)

    def show(result: dict[str, Any]) -> None:
        from flows.reports.polynomial import print_study

        print_study(recipe.name, result)

    return run_flow("polynomial", flow, options.result, show)


def run_ablate(options: argparse.Namespace) -> int:
    """Carry out an ablation and print what it says."""
    from flows.checks.ablation import ablation_preflight
    from flows.recipes.ablation import load_ablation_recipe

    recipe = load_ablation_recipe(options.recipe, options.overrides)

    def flow() -> dict[str, Any]:
        from flows.ablate import ablate

        return ablate(recipe)

    def show(result: dict[str, Any]) -> None:
        from flows.reports.ablation import print_ablation

        print_ablation(recipe.name, result)

    data = recipe.calibration
    return carry_out("ablate", recipe, data, ablation_preflight, flow, options.result, show)


def run_evaluate(options: argparse.Namespace) -> int:
    """Measure a model and print what was found."""
    return _measure("evaluate", [options.model], options)


def run_compare(options: argparse.Namespace) -> int:
    """Measure several models on the same tokens and print what was found."""
    if len(options.models) < 2:
        raise InputError(
            f"compare takes two models or more; found {options.models[0]} alone: name another, or "
            "use normtweak evaluate."
        )
    return _measure("compare", options.models, options)


def _measure(command: str, models: list[str], options: argparse.Namespace) -> int:
    from flows.checks.evaluation import check_request
    from flows.checks.services import check_services
    from flows.recipes.evaluation import parse_request

    text = {"path": options.text, "length": options.length, "max_tokens": options.max_tokens}
    tasks = options.tasks.split(",") if options.tasks else []
    request = parse_request(
        {
            "models": models,
            "against": options.against,
            "evaluation": {
                "perplexity": text,
                "tasks": tasks,
                "data": options.data,
                "max_items": options.max_items,
            },
            "dtype": options.dtype,
            "device": options.device,
        }
    )
    os.environ.setdefault(ENGINE_LEVEL_VARIABLE, "CRITICAL")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    set_variables(state_root())
    with first_line(f"{command} {' and '.join(models)}: begins"):
        check_request(request, state_root(), options.result)
        named = [*models, *([options.against] if options.against else [])]
        check_services(state_root(), registry=any(name.startswith("models:") for name in named))

    def flow() -> dict[str, Any]:
        from flows.compare import compare
        from flows.evaluate import evaluate

        return {"evaluate": evaluate, "compare": compare}[command](request)

    def show(result: dict[str, Any]) -> None:
        from flows.reports.evaluation_summary import print_comparison, print_evaluation

        {"evaluate": print_evaluation, "compare": print_comparison}[command](result)

    return run_flow(command, flow, options.result, show)


def run_plan(options: argparse.Namespace) -> int:
    """Print what a recipe would need; write nothing."""
    from flows.commands.plan import plan_lines, require_local_model, scratch_environment
    from flows.pipeline.checks import CHECKS
    from flows.recipes.file import read_with_overrides
    from flows.recipes.kinds import kind_of

    values = read_with_overrides(options.recipe, options.overrides)
    kind = kind_of(values)
    recipe = kind.parse(values)
    with scratch_environment(state_root()):
        require_local_model(recipe, state_root())
        ready = CHECKS[kind.name](recipe, state_root())
        lines = plan_lines(recipe, ready, state_root())
    for line in [*lines, *(f"warning {text}" for text in ready.warnings)]:
        print_line(line)
    return EXIT_OK


def run_verify(options: argparse.Namespace) -> int:
    """Reopen an export with an independent reader and print what was compared."""
    from flows.reports.verification import report_lines
    from normtweak_core.export.verification.verify import reader_python, verify_export

    with first_line(f"verify {options.export_dir}: opened by a reader without our code"):
        reader = reader_python(options.export_dir, REPOSITORY)

    def work() -> int:
        found = verify_export(options.export_dir, reader, options.timeout)
        for line in report_lines(options.export_dir, found):
            print_line(line)
        return EXIT_OK

    return logged("verify", work, terminal=False)


def run_promote(options: argparse.Namespace) -> int:
    """Point an alias to a version and print what changed."""
    from flows.commands.aliases import promote

    set_variables(state_root())
    print_line(promote(options.uri, options.alias))
    return EXIT_OK


def run_rollback(options: argparse.Namespace) -> int:
    """Point an alias to the version it pointed to before, and print what changed."""
    from flows.commands.aliases import rollback

    set_variables(state_root())
    print_line(rollback(options.name, options.alias))
    return EXIT_OK


def run_rebuild(options: argparse.Namespace) -> int:
    """Make a registered version again and tell whether it has the same bytes."""
    from tasks.registry.version_uri import parse_uri

    parse_uri(options.uri)
    from flows.commands.rebuild import rebuild_version

    return rebuild_version(options.uri, options.overrides, options.result)


def run_clean(options: argparse.Namespace) -> int:
    """Remove what can be made again and print what that was."""
    from tasks.engine.cleaning import clean
    from tasks.engine.progress import readable_bytes

    root = state_root()
    removed = clean(root, options.everything)
    for one in removed:
        if one.files:
            noun = "file" if one.files == 1 else "files"
            print_line(f"{one.kind}: {one.files} {noun}, {readable_bytes(one.size)}")
    total = sum(one.size for one in removed)
    print_line(f"removed {total} bytes ({readable_bytes(total)}) under {root}")
    return EXIT_OK


def run_reference_train(options: argparse.Namespace) -> int:
    """Train a reference model, or go on with its training."""
    from normtweak_core.reference import architectures

    if options.steps is not None and options.steps < 1:
        raise InputError(f"--steps must be at least 1; found {options.steps}: raise it.")
    root = state_root()
    out = options.out or Path(architectures.__file__).with_name("models") / options.name
    work_folder = options.work or root / REFERENCE / options.name
    for flag, folder in (("--out", out), ("--work", work_folder)):
        _require_folder(flag, folder)
    set_variables(root)

    def work() -> int:
        from normtweak_core.reference.train import TrainingPlan, train_reference
        from tasks.engine.cleaning import in_use

        plan = TrainingPlan(**({} if options.steps is None else {"steps": options.steps}))
        own = work_folder.absolute().is_relative_to(root)  # else no clean can take it away
        with in_use(root) if own else contextlib.nullcontext():
            losses = train_reference(options.name, out, work_folder, plan)
        for name, value in losses.items():
            print_line(f"{name}: {value:.4f} nats per token")
        print_line(f"written to {out}; the state under {work_folder} can be removed")
        return EXIT_OK

    return logged("reference", work)


def run_ui(options: argparse.Namespace) -> int:
    """Start the pages of Prefect and MLflow."""
    from flows.commands.serving import run_ui as run

    return run(options)


def run_serve(options: argparse.Namespace) -> int:
    """Serve the scheduled deployments."""
    from flows.commands.serving import run_serve as run

    return run(options)


def _require_folder(flag: str, folder: Path) -> None:
    from flows.checks.machine import existing_folder

    there = existing_folder(folder.absolute())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"{flag} must be a folder you may write to; {folder} cannot be made: {there} is "
            f"{'not writable' if there.is_dir() else 'a file'}."
        )
