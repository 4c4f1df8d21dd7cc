"""Moving an alias by hand: `normtweak promote` and `normtweak rollback`."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from flows.checks.services import check_services
from normtweak_core.errors import InputError
from tasks.engine.environment import prepare_environment, state_root
from tasks.registry.names import ALIAS_PATTERN, NAME_PATTERN, is_reserved_alias

if TYPE_CHECKING:
    from mlflow import MlflowClient

URI = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>[1-9][0-9]*)")


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
