"""Moving an alias by hand: `normtweak promote` and `normtweak rollback`."""

import argparse
import os
from pathlib import Path

from flows.checks.services import check_services
from flows.commands.command import STATE, Command
from flows.commands.execution import print_line
from flows.commands.failures import EXIT_OK
from normtweak_core.lazy import lazy
from tasks.engine.environment import prepare_environment, set_variables, state_root
from tasks.registry.names import parse_address, require_names
from tasks.registry.reachable import VARIABLE

by_hand = lazy("tasks.registry.by_hand")  # with MLflow

NAMED = ("NAME", "--alias")  # what the person calls both


def run_promote(options: argparse.Namespace) -> int:
    """Point an alias to a version and print what changed."""
    address = parse_address(options.uri, alias_too=False)
    require_names(address.name, options.alias, NAMED)
    uri, locks = _registry()
    print_line(by_hand.promote(uri, locks, address, options.alias))
    return EXIT_OK


def run_rollback(options: argparse.Namespace) -> int:
    """Point an alias to the version it pointed to before, and print what changed."""
    require_names(options.name, options.alias, NAMED)
    uri, locks = _registry()
    print_line(by_hand.rollback(uri, locks, options.name, options.alias))
    return EXIT_OK


def _registry() -> tuple[str, Path]:
    """Return address and locks of a registry that answers."""
    set_variables(state_root())
    check_services(state_root(), engine=False)
    return os.environ[VARIABLE], prepare_environment() / "locks"


def _add_promote(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", metavar="models:/NAME/VERSION", help="the version")
    parser.add_argument("--alias", default="champion", help="default: champion")


def _add_rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the registered model")
    parser.add_argument("--alias", default="champion", help="default: champion")


COMMANDS = {
    "promote": Command(
        "Move an alias, whatever the gate has said. The moves of an alias are kept in the\n"
        f"registry.\n{STATE}",
        ["promote models:/my-model/3", "promote models:/my-model/3 --alias staging"],
        _add_promote,
        run_promote,
    ),
    "rollback": Command(
        f"Take back the last move of an alias; once more goes one step further back.\n{STATE}",
        ["rollback my-model", "rollback my-model --alias candidate"],
        _add_rollback,
        run_rollback,
    ),
}
