"""Moving an alias by hand: `normtweak promote` and `normtweak rollback`."""

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from flows.checks.services import check_services
from flows.commands.command import STATE, Command
from flows.commands.execution import print_line
from flows.commands.failures import EXIT_OK
from normtweak_core.errors import InputError
from tasks.engine.environment import prepare_environment, set_variables, state_root
from tasks.registry.names import ALIAS_PATTERN, NAME_PATTERN, is_reserved_alias

if TYPE_CHECKING:
    from mlflow import MlflowClient

URI = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>[1-9][0-9]*)")


def run_promote(options: argparse.Namespace) -> int:
    """Point an alias to a version and print what changed."""
    set_variables(state_root())
    print_line(promote(options.uri, options.alias))
    return EXIT_OK


def run_rollback(options: argparse.Namespace) -> int:
    """Point an alias to the version it pointed to before, and print what changed."""
    set_variables(state_root())
    print_line(rollback(options.name, options.alias))
    return EXIT_OK


def promote(uri: str, alias: str) -> str:
    """Point an alias to a version and return in words what changed.

    Args:
        uri: models:/NAME/VERSION.
        alias: The alias, such as champion.

    Raises:
        InputError: The address or the alias is not one, or there is no such version.
    """
    match = URI.fullmatch(uri)
    if match is None:
        raise InputError(
            f"promote takes a version as models:/NAME/VERSION, such as models:/my-model/3; found "
            f"{uri!r}."
        )
    name, version = match["name"], int(match["version"])
    _check(name, alias)
    client, locks = _registry()
    from mlflow.exceptions import MlflowException

    from tasks.registry.promotion import move_alias, name_lock

    try:
        client.get_model_version(name, str(version))
    except MlflowException as error:
        raise InputError(
            f"{uri} must be in the registry; it is not: look with `normtweak ui`."
        ) from error
    with name_lock(locks, name):
        before = client.get_registered_model(name).aliases.get(alias)
        move_alias(client, name, alias, version, "promote")
    return f"{name} @{alias}: {_from(before)}version {version}"


def rollback(name: str, alias: str) -> str:
    """Point an alias to the version it pointed to before, and return in words what changed.

    Args:
        name: Registered model.
        alias: The alias, such as champion.

    Raises:
        InputError: There is no such model, or the alias never pointed to another version.
    """
    _check(name, alias)
    client, locks = _registry()
    from mlflow.exceptions import MlflowException

    from tasks.registry.promotion import earlier_version, move_alias, name_lock

    with name_lock(locks, name):
        try:
            present = client.get_registered_model(name).aliases.get(alias)
        except MlflowException as error:
            raise InputError(
                f"{name} must be a registered model; there is none of that name: look with "
                "`normtweak ui`."
            ) from error
        to = earlier_version(client, name, alias)
        if to is None:
            found = f"it is at version {present}, its first" if present else "it is not set"
            raise InputError(
                f"a rollback needs a version that {name} @{alias} pointed to before; {found}: "
                "choose one with normtweak promote."
            )
        move_alias(client, name, alias, to, "rollback")
    return f"{name} @{alias}: {_from(present)}version {to}"


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


def _registry() -> "tuple[MlflowClient, Path]":
    check_services(state_root(), engine=False)
    root = prepare_environment()
    from mlflow import MlflowClient

    uri = os.environ["MLFLOW_TRACKING_URI"]
    return MlflowClient(tracking_uri=uri, registry_uri=uri), root / "locks"


def _from(version: object) -> str:
    return "" if version is None else f"version {version} -> "


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
