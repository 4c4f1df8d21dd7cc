"""A version of the registry, read and not changed: its tags, its reports, the export itself."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from normtweak_core.errors import InputError
from normtweak_core.scratch import scratch_folder
from tasks.registry.database import make_database
from tasks.registry.names import Address

ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the second: no such alias
LOOK = "look with `normtweak ui`"


@dataclass(frozen=True)
class RegisteredVersion:
    """A version that normtweak has registered."""

    name: str
    version: int
    run_id: str
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        """Address of the version."""
        return str(Address(self.name, str(self.version)))


def registry_client(uri: str) -> MlflowClient:
    """Return a client of one registry for versions, runs and files alike."""
    make_database(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def find_version(client: MlflowClient, address: Address) -> ModelVersion:
    """Return a version, whoever has registered it.

    Raises:
        InputError: There is none.
    """
    try:
        if address.alias:
            return client.get_model_version_by_alias(address.name, address.alias)
        return client.get_model_version(address.name, str(address.version))
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        raise InputError(f"{address} must be in the registry; it is not: {LOOK}.") from error


def find_our_version(client: MlflowClient, address: Address) -> RegisteredVersion:
    """Return a version that normtweak has registered.

    Raises:
        InputError: There is none, or something else has registered it.
    """
    found = find_version(client, address)
    needed = ("export_sha256", "recipe_sha256", "source_sha256", "calibration_sha256")
    missing = [tag for tag in needed if tag not in found.tags]
    if missing or not found.run_id:
        lacks = f"no tag {missing[0]}" if missing else "no run"
        raise InputError(
            f"{address} must have been registered by normtweak; it has {lacks}: something else has "
            f"registered it; {LOOK}."
        )
    return RegisteredVersion(found.name, int(found.version), found.run_id, dict(found.tags))


@contextlib.contextmanager
def files_of(address: Address, uri: str) -> Iterator[Path]:
    """Yield the folder with the files of a version; a copy of them lives as long as the block.

    Raises:
        InputError: There is no such version, or its files cannot be read.
    """
    client = registry_client(uri)
    version = find_version(client, address)
    place = client.get_model_version_download_uri(version.name, str(version.version))
    with scratch_folder("version") as copy:
        there = None if is_local_uri(place) else str(copy)  # this machine's are read in place
        try:
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=place, dst_path=there, tracking_uri=uri
            )
        except (MlflowException, OSError) as error:
            raise InputError(
                f"the files of {address} must be readable at {place}; they are not: {error}"
            ) from error
        yield Path(found)


def download_reports(client: MlflowClient, version: RegisteredVersion, to: Path) -> Path:
    """Return the folder with a copy of all reports of a version.

    Raises:
        InputError: The registry has lost them.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    to.mkdir(parents=True, exist_ok=True)
    try:
        return Path(client.download_artifacts(version.run_id, "reports", str(to)))
    except (MlflowException, OSError) as error:
        raise InputError(
            f"{version.uri} must have its reports in the registry; they are gone: carry out its "
            "recipe again, which stores them."
        ) from error


def download_export(client: MlflowClient, export_sha256: str, to: Path) -> Path | None:
    """Return the folder of a copy of a registered export, whichever version holds it.

    Returns:
        None where no version holds it.
    """
    assert re.fullmatch(r"[0-9a-f]{64}", export_sha256), f"not a SHA-256: {export_sha256!r}"
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    found = client.search_model_versions(f"tags.export_sha256 = '{export_sha256}'")
    for version in sorted(found, key=lambda one: (one.name, int(one.version))):
        if "logged_model_id" not in version.tags:  # not one of ours
            continue
        to.mkdir(parents=True, exist_ok=True)
        try:
            model = client.get_logged_model(version.tags["logged_model_id"])
            # Of a models:/ address MLflow asks the registry that this process points at, whatever
            # it is told; of this one, the one it is told.
            place = f"{model.artifact_location}/model"
            return Path(
                mlflow.artifacts.download_artifacts(
                    place, dst_path=str(to), tracking_uri=client.tracking_uri
                )
            )
        except (MlflowException, OSError):  # this version has lost it; another may have it
            continue
    return None


def export_in_place(client: MlflowClient, version: RegisteredVersion) -> Path | None:
    """Return the export of a version where the registry keeps it; None: not on this machine."""
    try:
        model = client.get_logged_model(version.tags["logged_model_id"])
    except (KeyError, MlflowException):
        return None
    if not is_local_uri(model.artifact_location):
        return None
    folder = Path(local_file_uri_to_path(model.artifact_location)) / "model"
    return folder if folder.is_dir() else None
