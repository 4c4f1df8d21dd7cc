"""Aliases that a person moves, in place of the gate."""

from pathlib import Path

from mlflow.exceptions import MlflowException

from normtweak_core.errors import InputError
from tasks.registry.names import Address
from tasks.registry.promotion import earlier_version, move_alias, name_lock
from tasks.registry.registered import LOOK, find_version, registry_client


def promote(uri: str, locks: Path, address: Address, alias: str) -> str:
    """Point an alias to a version and return in words what changed.

    Raises:
        InputError: There is no such version.
    """
    client, name = registry_client(uri), address.name
    number = int(find_version(client, address).version)
    with name_lock(locks, name):
        before = client.get_registered_model(name).aliases.get(alias)
        move_alias(client, name, alias, number, "promote")
    return _told(name, alias, before, number)


def rollback(uri: str, locks: Path, name: str, alias: str) -> str:
    """Point an alias to the version it pointed to before, and return in words what changed.

    Raises:
        InputError: There is no such model, or the alias never pointed to another version.
    """
    client = registry_client(uri)
    with name_lock(locks, name):
        try:
            present = client.get_registered_model(name).aliases.get(alias)
        except MlflowException as error:
            raise InputError(
                f"{name} must be a registered model; there is none of that name: {LOOK}."
            ) from error
        to = earlier_version(client, name, alias)
        if to is None:
            found = f"it is at version {present}, its first" if present else "it is not set"
            raise InputError(
                f"a rollback needs a version that {name} @{alias} pointed to before; {found}: "
                "choose one with normtweak promote."
            )
        move_alias(client, name, alias, to, "rollback")
    return _told(name, alias, present, to)


def _told(name: str, alias: str, before: object, now: int) -> str:
    return f"{name} @{alias}: {'' if before is None else f'version {before} -> '}version {now}"
