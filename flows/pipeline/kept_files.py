"""What a registered version keeps beside its reports, so that it can be rebuilt from itself.

::

    reports/made-with.json            MadeWith, without the packages
    reports/environment.txt           the packages, as a requirements file of exact versions
    reports/calibration.safetensors   the windows that the model was calibrated with or trained on
    reports/calibration.parquet       the same as a table people read
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from normtweak_core.errors import InputError
from normtweak_core.export.payload import file_sha256
from normtweak_core.export.verification.verify import read_manifest
from tasks.engine.artifacts import temporary_beside, write_atomically
from tasks.engine.environment import state_root
from tasks.engine.provenance import MANIFEST_KEY, MadeWith
from tasks.results import CalibrationResult

MADE_WITH, ENVIRONMENT = "made-with.json", "environment.txt"
CALIBRATION = "calibration"
# A set of 4000 windows of 2048 tokens. The registry holds it twice, for the model and for its run;
# of a larger one it holds the hash, by which a rebuild knows it just as well.
LARGEST_CALIBRATION = 64 << 20


@dataclass(frozen=True)
class Kept:
    """Files to store with a version, and what its tags say about them."""

    files: list[Path]
    tags: dict[str, str]


def keep_for_rebuild(folder: Path, export: Path, calibration: CalibrationResult) -> Kept:
    """Write what a version keeps; equal exports and windows give equal bytes."""
    recorded = MadeWith.model_validate(read_manifest(export)[MANIFEST_KEY])
    facts = recorded.model_dump(mode="json", exclude={"packages"})
    environment = recorded.requirements().encode()
    write_atomically(folder / ENVIRONMENT, environment)
    write_atomically(folder / MADE_WITH, (json.dumps(facts, indent=1) + "\n").encode())
    files = [folder / MADE_WITH, folder / ENVIRONMENT]
    parts = (calibration.windows, calibration.table)
    is_stored = sum(part.size for part in parts) <= LARGEST_CALIBRATION
    if is_stored:
        files += [_copy(state_root() / part.path, folder / CALIBRATION) for part in parts]
    return Kept(
        files,
        {
            "code_commit": recorded.commit or "none",
            "environment_sha256": file_sha256(folder / ENVIRONMENT),
            "calibration_set": "stored" if is_stored else "too large to store: its hash alone",
        },
    )


def read_kept(folder: Path) -> MadeWith:
    """Return what the files of a version say that it was made with.

    Raises:
        InputError: A file is missing or was altered into something else.
    """
    try:
        facts = json.loads((folder / MADE_WITH).read_text(encoding="utf-8"))
        lines = (folder / ENVIRONMENT).read_text(encoding="utf-8").split()
        packages = dict(line.split("==") for line in lines)
        return MadeWith.model_validate(facts | {"packages": packages})
    except (OSError, ValueError) as error:
        raise InputError(
            f"a version must have {MADE_WITH} and {ENVIRONMENT} among its reports to be rebuilt; "
            f"they cannot be read ({' '.join(str(error).split())[:200]}): carry out its recipe "
            "again, which stores them."
        ) from error


def _copy(stored: Path, to: Path) -> Path:
    """Copy a file, whole or not at all, to a name with its own suffix."""
    target = to.with_suffix(stored.suffix)
    temporary = temporary_beside(target)
    try:
        shutil.copyfile(stored, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target
