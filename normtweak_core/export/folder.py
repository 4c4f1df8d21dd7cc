"""A folder that appears under its name complete, or not at all."""

import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from normtweak_core.errors import InputError

MANIFEST, MODEL_CARD = "normtweak.json", "README.md"


@contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """Give a temporary sibling of ``out`` to write in; it takes that name when the block ends well.

    An earlier export at ``out`` is replaced. What a killed process left beside it is removed: the
    folder of a living one is locked, and the lock dies with its process.

    Raises:
        InputError: ``out`` exists and is not an export.

    """
    if out.exists() and not _replaceable(out):
        raise InputError(
            f"the export folder must be new, empty or an earlier export; {out} is neither. "
            "Remove it or choose another folder."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    temporary.chmod(0o755)
    lock = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield temporary
        for path in [*(p for p in temporary.rglob("*") if p.is_dir()), temporary]:
            sync(path)
        _put_in_place(temporary, out)
    finally:
        os.close(lock)
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Return once the file's bytes, or the folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file and return once it is on the disk."""
    path.write_bytes(content)
    sync(path)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON with sorted keys and return once it is on the disk."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    write_bytes(path, f"{text}\n".encode())


def _replaceable(out: Path) -> bool:
    return out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))


def _remove_abandoned(out: Path) -> None:
    for path in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        try:
            lock = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # finished or removed since the listing
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue  # another process is writing there
        finally:
            os.close(lock)


def _put_in_place(temporary: Path, out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        # A folder that is not empty cannot be renamed over; moved aside it is an abandoned one.
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        out.rename(aside)
        temporary.rename(out)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        temporary.rename(out)
    sync(out.parent)
