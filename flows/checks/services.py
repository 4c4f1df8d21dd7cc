"""What the environment says about servers and places, looked at once before a run starts."""

import os
from pathlib import Path

from normtweak_core.errors import InputError
from normtweak_core.paths import given_path
from tasks.engine import api_address as engine_server
from tasks.engine.environment import default_variables
from tasks.registry import reachable as registry_server

OTHER_REGISTRY = "MLFLOW_REGISTRY_URI"
PLACES = ("PREFECT_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")


def check_services(root: Path, registry: bool = True, engine: bool = True) -> None:
    """Accept the servers and folders that the environment names; our own are made when needed.

    Args:
        root: The state root, whose registry is our own.
        registry: Whether versions are read or registered.
        engine: Whether a flow is run.

    Raises:
        InputError: An address is none, nothing answers at it, or a folder is a file.
    """
    for name in PLACES:
        if value := os.environ.get(name):
            _require_folder(name, given_path(value, name))
    own = default_variables(root)[registry_server.VARIABLE]
    uri = os.environ.get(registry_server.VARIABLE) or own
    if registry and uri != own:
        registry_server.check_registry(uri)
    other = os.environ.get(OTHER_REGISTRY)
    if registry and other and other != uri:
        raise InputError(
            f"must be that of {registry_server.VARIABLE}: versions lie where their runs are",
            key=OTHER_REGISTRY,
            found=f"found {other}, and {uri}",
            remedy=f"unset {OTHER_REGISTRY}",
        )
    if engine and (url := os.environ.get(engine_server.VARIABLE)):
        engine_server.check_engine(url)


def _require_folder(name: str, folder: Path) -> None:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(
            "must be a folder, or one that can be made",
            key=name,
            found=f"{there} is a file",
            remedy=f"choose another, or unset {name}",
        )
