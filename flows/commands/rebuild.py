"""`normtweak rebuild`: make a registered version again from what the registry says about it."""

import argparse
import os
from pathlib import Path

from flows.checks.services import check_services
from flows.checks.written_places import check_result_file, check_state_root
from flows.commands.command import STATE, Command, add_overrides, add_result
from flows.commands.execution import quiet_libraries
from flows.commands.first_line import first_line
from normtweak_core.lazy import lazy
from tasks.engine.environment import prepare_environment, set_variables, state_root
from tasks.registry.names import parse_address
from tasks.registry.reachable import existing_registry

made_again = lazy("flows.commands.made_again")  # with Prefect, which reads its settings then


def run_rebuild(options: argparse.Namespace) -> int:
    """Make a registered version again and tell whether it has the same bytes."""
    parse_address(options.uri)
    root = state_root()
    with first_line(f"rebuild {options.uri}: begins with what the registry holds of it"):
        _require_places(root, options.result)
    threads = os.environ.get("OMP_NUM_THREADS") or None  # an empty one counts as unset
    quiet_libraries()
    set_variables(root)
    prepare_environment()
    return made_again.make_again(options.uri, options.overrides, root, options.result, threads)


def _require_places(root: Path, result_file: Path | None) -> None:
    """Refuse, before anything is imported or made, what cannot be read or written."""
    if result_file is not None:
        check_result_file(result_file)
    check_state_root(root)
    existing_registry(root, "a rebuild")
    check_services(root)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "uri", metavar="models:/NAME/VERSION", help="the version, or models:/NAME@ALIAS"
    )
    where = "where a model or text of the recipe lies now, such as model.source"
    add_overrides(parser, "KEY=PATH", where)
    add_result(parser)


COMMANDS = {
    "rebuild": Command(
        "Find recipe, model, text and code of a version in the registry, say where this machine\n"
        "differs from the recorded one, compute everything anew, and compare the export with the\n"
        "registered one: exit code 0 where it is the same, 1 where not. Registers nothing.\n"
        f"{STATE}",
        [
            "rebuild models:/quickstart-llama-w2g64/1",
            "rebuild models:/my-model@champion --set model.source=/where/it/is/now",
        ],
        _add_arguments,
        run_rebuild,
    )
}
