"""What works on a state root, what waits there, what it holds: read from its files alone.

No server is asked, so that it can be told of a root whose server is down or busy.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.engine.cleaning import USE_LOCK
from tasks.engine.events import read_events
from tasks.engine.locks import held
from tasks.engine.root_layout import KEPT, LOCKS, MADE_AGAIN, RECORDS, WAITING
from tasks.server.api import running_server

PROC_LOCKS = Path("/proc/locks")
NOT_TOLD = ("event", "time", "pid", "flow_run", "key", "path", "sha256", "chain")


@dataclass(frozen=True)
class WorkingRun:
    """A flow run whose process lives."""

    flow_run: str
    pid: int | None  # None: it has not written an event yet
    began: float | None  # seconds since the epoch
    last: str  # what it did last, in words
    last_time: float | None


@dataclass(frozen=True)
class Held:
    """A lock that a living process holds."""

    name: str  # relative to the folder of locks
    pids: tuple[int, ...]  # none where the system does not tell


@dataclass(frozen=True)
class Disk:
    """Files of one kind."""

    kind: str
    files: int
    size: int  # bytes
    made_again: bool  # by the next run that needs them


@dataclass(frozen=True)
class Status:
    """A state root at one moment."""

    root: str
    server: str | None  # address of the Prefect API that stays, of `normtweak ui` or `serve`
    runs: tuple[WorkingRun, ...]
    stages: int  # finished ones, which the next run finds
    waiting: tuple[str, ...]  # finished models that the registry has not taken
    locks: tuple[Held, ...]
    disk: tuple[Disk, ...]


def status_of(root: Path) -> Status:
    """Return what there is of a state root; changes nothing, and one that is not there is empty."""
    return Status(
        root=str(root),
        server=running_server(root) if (root / LOCKS).is_dir() else None,
        runs=tuple(_runs(root)),
        stages=len([path for path in (root / RECORDS).glob("*") if path.is_file()]),
        waiting=tuple(_waiting(root)),
        locks=tuple(_held(root)),
        disk=tuple(
            _disk(root / kind, kind, kind in MADE_AGAIN)
            for kind in (*MADE_AGAIN, *KEPT)
            if (root / kind).exists()
        ),
    )


def _runs(root: Path) -> list[WorkingRun]:
    alive = {
        path.stem
        for path in sorted((root / LOCKS / "runs").glob("*.lock"))
        if not path.stem.startswith("owner-") and held(path)
    }
    of: dict[str, list[dict[str, Any]]] = {run: [] for run in sorted(alive)}
    for event in read_events(root):
        if (run := event.get("flow_run")) in of:
            of[run].append(event)
    return [
        WorkingRun(
            run,
            events[-1]["pid"] if events else None,
            events[0]["time"] if events else None,
            _in_words(events[-1]) if events else "nothing yet",
            events[-1]["time"] if events else None,
        )
        for run, events in of.items()
    ]


def _in_words(event: dict[str, Any]) -> str:
    facts = [
        str(value) if isinstance(value, str) else f"{name} {value}"
        for name, value in event.items()
        if name not in NOT_TOLD
    ]
    return ", ".join([event["event"], *facts])


def _waiting(root: Path) -> list[str]:
    names = []
    for file in sorted((root / WAITING).glob("*.json")):
        try:
            names.append(json.loads(file.read_bytes())["name"])
        except (OSError, ValueError, KeyError, TypeError):
            names.append(f"{file.name}, which cannot be read")
    return names


def _held(root: Path) -> list[Held]:
    owners: dict[int, set[int]] = {}  # processes by inode
    if PROC_LOCKS.is_file():
        for line in PROC_LOCKS.read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK":  # those that wait have an arrow there
                owners.setdefault(int(fields[5].split(":")[2]), set()).add(int(fields[4]))
    folder = root / LOCKS
    found = []
    for path in sorted(folder.rglob("*.lock")):
        if path.name != USE_LOCK and held(path):
            pids = owners.get(os.stat(path).st_ino, set())
            found.append(Held(path.relative_to(folder).as_posix(), tuple(sorted(pids))))
    return found


def _disk(place: Path, kind: str, made_again: bool) -> Disk:
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    sizes = []
    for path in files:
        try:
            sizes.append(path.lstat().st_size)
        except OSError:  # gone meanwhile
            continue
    return Disk(kind, len(sizes), sum(sizes), made_again)
