"""Where the export lies that a fine-tuning starts from: a folder, or a version of the registry."""

import shutil
from pathlib import Path

from normtweak_core.errors import InputError
from normtweak_core.paths import given_path
from tasks.engine.artifacts import temporary_beside
from tasks.registry.names import REGISTERED, parse_address
from tasks.registry.reachable import existing_registry

FOLDER = "exports/imported"  # copies of exports that lie elsewhere


def imported_folder(root: Path, payload_sha256: str) -> Path:
    """Return where the copy of an export goes that does not lie under the state root."""
    return root / FOLDER / payload_sha256[:32]


def export_folder(source: str, root: Path, writes: bool = True) -> Path:
    """Return the folder of an export.

    A version whose files are on this machine is read in place; another one is copied to where
    exports go that do not lie under the state root.

    Args:
        source: A folder, models:/NAME/VERSION or models:/NAME@ALIAS.
        root: The state root.
        writes: Whether a copy may be made.

    Raises:
        InputError: The registry has no such version, or has lost its files, or a copy would have
            to be made and may not.
    """
    if not source.startswith(REGISTERED):
        return given_path(source, "model.source")
    wanted = parse_address(source)
    uri = existing_registry(root, source)
    # MLflow, for those who have named a version.
    from tasks.registry.registered import (
        download_export,
        export_in_place,
        find_our_version,
        registry_client,
    )

    client = registry_client(uri)
    version = find_our_version(client, wanted)
    if (folder := export_in_place(client, version)) is not None:
        return folder
    sha256 = version.tags["export_sha256"]
    folder = imported_folder(root, sha256)
    if folder.is_dir():
        return folder
    if not writes:
        raise InputError(
            f"a plan writes nothing, so the export must be here; {source} lies in the registry "
            f"{uri}: give the folder of the export, or start the fine-tuning."
        )
    copying = temporary_beside(folder)
    copying.parent.mkdir(parents=True, exist_ok=True)
    try:
        copied = download_export(client, sha256, copying)
        if copied is None:
            raise InputError(
                f"{source} must have its files in the registry; they are gone: give the folder of "
                "the export."
            )
        copied.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another run was first
            raise
    finally:
        shutil.rmtree(copying, ignore_errors=True)
    return folder
