"""Frees disk: streams, temporaries and artefacts that no finished stage needs any more."""

import contextlib
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normtweak_core.errors import InputError
from tasks.engine.environment import FOLDERS, HOME_VARIABLE
from tasks.engine.locks import held, remove_if_free, try_lock
from tasks.engine.root_layout import (
    ARTEFACTS,
    EXPORTS,
    LOCKS,
    LOGS,
    MADE_AGAIN,
    REBUILDS,
    RECORDS,
    WAITING,
)

USE_LOCK = "in-use.lock"  # shared by running commands, taken alone by clean
STREAMS = f"{ARTEFACTS}/streams"
CHECKPOINTS = f"{ARTEFACTS}/training"  # of unfinished trainings, which go on from them


@dataclass(frozen=True)
class Removed:
    """Files of one kind that were removed."""

    kind: str
    files: int
    size: int  # bytes


@contextlib.contextmanager
def in_use(root: Path) -> Iterator[None]:
    """Keep `clean` away from a state root for the duration of the block.

    Raises:
        InputError: A clean is at work on it.
    """
    fd = try_lock(root / "locks" / USE_LOCK, shared=True)
    if fd is None:
        raise InputError(
            f"the state under {root} must not be cleaned while it is used; `normtweak clean` is at "
            "work there: start again when it has finished."
        )
    try:
        yield
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Limits:
    """Which finished stages go as well: those made longest ago."""

    older_than: float | None = None  # seconds; with them their logs
    most: int | None = None  # bytes of the files that the others refer to


NO_LIMITS = Limits()


def clean(root: Path, everything: bool = False, limits: Limits = NO_LIMITS) -> list[Removed]:
    """Remove what can be made again and return what that was, by kind.

    Args:
        root: The state root; one that does not exist is clean, and is not made.
        everything: Remove all that is made again (`tasks.engine.root_layout`); the registry with
            its copies of the models, and Prefect's history, stay.
        limits: Otherwise, which finished stages are removed as if nobody needed them, with exports
            that no other stage holds; the next run makes them again. What waits for the registry
            stays.

    Raises:
        InputError: It is no state root, or a run, `normtweak ui` or `normtweak serve` uses it, or
            all shall go and a finished model waits for the registry.
    """
    if not root.exists():
        return []
    if absent := [name for name in FOLDERS if not (root / name).is_dir()]:
        raise InputError(
            f"a state root made by normtweak is needed to be cleaned; {root} has no folder "
            f"{absent[0]}: check {HOME_VARIABLE}."
        )
    with _alone(root):
        if everything:
            _require_nothing_waits(root)
            # What is inside, not the folders: by them the next clean knows the root.
            kinds = {kind: _whole(root / kind) for kind in MADE_AGAIN}
            for lock in _idle_locks(root):
                remove_if_free(lock)
        else:
            passed = _beyond(root, limits)
            kept, dead = _referenced(root, set(passed))
            kinds = {
                "finished stages beyond the limits": passed,
                "exports of such stages": _left_behind(root, passed, kept),
                "logs beyond the limits": _old_logs(root, limits),
                "streams": [root / STREAMS],
                "temporary files": _temporaries(root),
                "stage records whose files are gone": dead,
                "artefacts that no finished stage refers to": _unreferenced(root, kept),
                "rebuilds": _whole(root / REBUILDS),
            }
        kinds["unfinished registrations"] = sorted((root / LOCKS).glob("*.staging"))
        return [_remove(kind, places) for kind, places in kinds.items()]


def references(record: Path) -> list[dict[str, Any]] | None:
    """Return the files a stage record refers to; None if it is no record of ours."""
    try:
        text = json.loads(record.read_bytes())["result"].partition("\n")[2]
        return list(_files_in(json.loads(text)["data"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    fd = try_lock(root / "locks" / USE_LOCK)
    if fd is None:
        raise _busy(root, "a command works on it")
    try:
        # Scheduled runs take no lock of this kind, but each owns one of its own.
        if any(held(path) for path in (root / "locks" / "runs").glob("*.lock")):
            raise _busy(root, "a run works on it")
        if held(root / "locks" / "server.lock"):
            raise _busy(root, "`normtweak ui` or `normtweak serve` runs on it")
        yield
    finally:
        os.close(fd)


def _require_nothing_waits(root: Path) -> None:
    folder = root / WAITING
    if not any(folder.glob("*.json")):
        return
    models = len([*folder.glob("*.json")])
    raise InputError(
        f"no finished model under {root} must wait for the registry before all is removed; found "
        f"{models}: `normtweak register --pending` first, or remove {folder}."
    )


def _busy(root: Path, what: str) -> InputError:
    return InputError(
        f"the state under {root} must be unused to be cleaned; {what}: wait for it or stop it."
    )


def _files_in(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if {"path", "size", "sha256"} <= value.keys():
            yield value
        for inner in value.values():
            yield from _files_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _files_in(inner)


def _beyond(root: Path, limits: Limits) -> list[Path]:
    """Return the records of stages that the limits let go, those made longest ago first."""
    if limits == NO_LIMITS:
        return []
    held = {root / export for export in _waiting_exports(root)}
    found: list[tuple[float, Path, dict[Path, int]]] = []
    for record in (root / RECORDS).glob("*"):
        sizes = {root / file["path"]: file["size"] for file in references(record) or ()}
        if sizes and not any(held & set(path.parents) for path in sizes):
            found.append((record.stat().st_mtime, record, sizes))
    found.sort(key=lambda one: one[:2])
    oldest = time.time() - (math.inf if limits.older_than is None else limits.older_than)
    gone = [record for made, record, _ in found if made < oldest]
    if limits.most is None:
        return gone
    left = found[len(gone) :]
    holders = Counter(path for *_, sizes in left for path in sizes)
    total = sum({path: size for *_, sizes in left for path, size in sizes.items()}.values())
    for _, record, sizes in left:
        if total <= limits.most:
            break
        gone.append(record)
        for path, size in sizes.items():
            holders[path] -= 1
            total -= 0 if holders[path] else size
    return gone


def _waiting_exports(root: Path) -> list[str]:
    try:
        files = sorted((root / WAITING).glob("*.json"))
        return [json.loads(file.read_bytes())["export"] for file in files]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"what waits under {root / WAITING} must be readable before old stages are removed; it "
            f"is not ({error}): `normtweak register --pending` names the file."
        ) from error


def _left_behind(root: Path, gone: list[Path], kept: set[Path]) -> list[Path]:
    """Return the folders of exports that only records that go have referred to."""
    files = {root / file["path"] for record in gone for file in references(record) or ()}
    places = {
        (root / EXPORTS) / path.relative_to(root / EXPORTS).parts[0]
        for path in files
        if path.is_relative_to(root / EXPORTS)
    }
    return sorted(place for place in places if not any(place in path.parents for path in kept))


def _old_logs(root: Path, limits: Limits) -> list[Path]:
    if limits.older_than is None:
        return []
    oldest = time.time() - limits.older_than
    return [log for log in sorted((root / LOGS).glob("*")) if log.stat().st_mtime < oldest]


def _referenced(root: Path, gone: set[Path]) -> tuple[set[Path], list[Path]]:
    """Return the files that complete records refer to, and the records that are not complete."""
    kept: set[Path] = set()
    dead: list[Path] = []
    for record in sorted({*(root / RECORDS).glob("*")} - gone):
        files = references(record)
        if files is None:
            continue
        # Sizes, not hashes: an altered file is noticed when it is used, and kept here until then.
        if all(_size(root / file["path"]) == file["size"] for file in files):
            kept.update(root / file["path"] for file in files)
        else:
            dead.append(record)
    return kept, dead


def _unreferenced(root: Path, kept: set[Path]) -> list[Path]:
    return [
        path
        for path in sorted((root / ARTEFACTS).rglob("*"))
        if path.is_file()
        and path not in kept
        and not {root / STREAMS, root / CHECKPOINTS} & set(path.parents)
        and not path.name.startswith(".tmp-")
    ]


def _whole(place: Path) -> list[Path]:
    """Return what is inside of a folder, or a file itself; nothing where there is none."""
    return [place] if place.is_file() else sorted(place.glob("*"))


def _idle_locks(root: Path) -> list[Path]:
    """Return the locks of work that is over; those of runs tell which have died unmarked."""
    folder = root / LOCKS
    found = [path for path in folder.glob("*.lock") if path.name != USE_LOCK]
    return found + [path for kind in ("chains", "stages") for path in folder.glob(f"{kind}/*")]


def _temporaries(root: Path) -> list[Path]:
    folders = [root / name for name in MADE_AGAIN if name != REBUILDS]
    found = [path for folder in folders for path in sorted(folder.rglob(".tmp-*"))]
    return found + sorted((root / EXPORTS).glob(".*.partial"))


def _remove(kind: str, places: Iterable[Path]) -> Removed:
    files = size = 0
    for place in places:
        inside = [p for p in place.rglob("*") if p.is_file()] if place.is_dir() else [place]
        sizes = [found for path in inside if (found := _size(path)) is not None]
        files, size = files + len(sizes), size + sum(sizes)
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
    return Removed(kind, files, size)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
