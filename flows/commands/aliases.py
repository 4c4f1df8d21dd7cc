"""Moving an alias by hand: `normtweak promote` and `normtweak rollback`."""

import argparse
import os
import re
from pathlib import Path

from flows.checks.services import check_services
from flows.commands.command import STATE, Command
from flows.commands.execution import lazily, print_line
from flows.commands.failures import EXIT_OK
from normtweak_core.errors import InputError
from tasks.engine.environment import prepare_environment, set_variables, state_root
from tasks.registry.names import ALIAS_PATTERN, NAME_PATTERN, is_reserved_alias, parse_address
from tasks.registry.reachable import VARIABLE


def run_promote(options: argparse.Namespace) -> int:
    """Point an alias to a version and print what changed."""
    address = parse_address(options.uri, alias_too=False)
    _check(address.name, options.alias)
    promote = lazily("tasks.registry.by_hand:promote")
    print_line(promote(*_registry(), address, options.alias))
    return EXIT_OK


def run_rollback(options: argparse.Namespace) -> int:
    """Point an alias to the version it pointed to before, and print what changed."""
    _check(options.name, options.alias)
    rollback = lazily("tasks.registry.by_hand:rollback")
    print_line(rollback(*_registry(), options.name, options.alias))
    return EXIT_OK


def _check(name: str, alias: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputError(
            f"a registered model name is letters, digits, dots, dashes and underscores; found "
            f"{name!r}: check it."
        )
    if is_reserved_alias(alias) or not re.fullmatch(ALIAS_PATTERN, alias):
        raise InputError(
            f"--alias must be letters, digits, '_' and '-', and neither latest nor v and a number; "
            f"found {alias!r}: choose another."
        )


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
