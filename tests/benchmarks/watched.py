"""A process that is watched while it runs: memory and CPU seconds by stage, and what is on disk.

Memory is read from /proc/PID/status some forty times a second, of the process itself and of those
that it has started: anonymous pages (its own), and pages of files that are mapped (weights that are
being read, libraries), which the kernel takes back when it needs them. The stage of a moment is
told by `events.jsonl` of the state root, so that nothing of the run is changed by being watched.
"""

import bisect
import itertools
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.engine.events import read_events

PAUSE = 0.025  # seconds between two looks at the memory
DISK_PAUSE = 0.5  # and between two at the disk
KINDS = ("RssAnon", "RssFile", "RssShmem", "VmData")  # of /proc/PID/status
TICKS = os.sysconf("SC_CLK_TCK")
START, END = "start", "end"
# What plans call the stages that events call otherwise.
NAMES = {"final-tune": "final tune"}


@dataclass(frozen=True)
class Look:
    """What a process and those below it hold at one moment, in bytes."""

    time: float
    anonymous: int  # of the process itself
    file: int
    children: int  # anonymous and file, of those that it has started
    data: int  # what `ulimit -d` counts: the most that one of all of them has asked for
    cpu_seconds: float  # of all of them since the start


@dataclass(frozen=True)
class StageCost:
    """What a stage took."""

    seconds: float
    cpu_seconds: float
    anonymous: int  # at its peak
    resident: int  # anonymous and file together, at its peak
    children: int
    data: int


@dataclass(frozen=True)
class Watched:
    """What a command took."""

    code: int  # it ended with
    seconds: float
    disk: int  # bytes of the state root at the peak
    stages: dict[str, StageCost]
    blocks: list[float]  # CPU seconds of each, in the order of the run
    output: str

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values, without what the command printed."""
        return {name: value for name, value in asdict(self).items() if name != "output"}


def watch(command: Sequence[str], root: Path, environment: dict[str, str], **how: Any) -> Watched:
    """Run a command that works in a state root, and return what it took.

    Args:
        command: And its arguments.
        root: The state root; what is there already is not counted.
        environment: Variables beside our own.
        how: More arguments of `subprocess.Popen`.
    """
    root.mkdir(parents=True, exist_ok=True)
    before, looks, most = on_disk(root), [], [0]
    began = time.time()
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **how,
    )
    ended = threading.Event()

    def look_on() -> None:
        next_disk = 0.0
        while not ended.wait(PAUSE):
            if (look := look_at(process.pid)) is not None:
                looks.append(look)
            if time.time() > next_disk:
                most[0] = max(most[0], on_disk(root) - before)
                next_disk = time.time() + DISK_PAUSE

    watcher = threading.Thread(target=look_on)
    watcher.start()
    output, _ = process.communicate()
    ended.set()
    watcher.join()
    marks = [(began, START), *_marks(root, began)]
    return Watched(
        process.returncode,
        time.time() - began,
        most[0],
        costs(looks, marks),
        _block_seconds(looks, root, began),
        output,
    )


def look_at(pid: int) -> Look | None:
    """Return what a process holds; None: it has ended."""
    own = _memory(pid)
    if own is None:
        return None
    below = _below(pid)
    others = [found for one in below if (found := _memory(one)) is not None]
    return Look(
        time.time(),
        own[0],
        own[1],
        sum(one[0] + one[1] for one in others),
        max(one[2] for one in (own, *others)),
        sum(map(_cpu_seconds, (pid, *below))),
    )


def costs(looks: list[Look], marks: list[tuple[float, str]]) -> dict[str, StageCost]:
    """Return what each stage took, from looks and from the moments in which stages began."""
    found: dict[str, StageCost] = {}
    for (since, name), (until, _) in zip(marks, [*marks[1:], (float("inf"), END)], strict=True):
        part = _between(looks, since, until)
        if not part:
            continue
        new = StageCost(
            part[-1].time - part[0].time,
            part[-1].cpu_seconds - part[0].cpu_seconds,
            max(one.anonymous for one in part),
            max(one.anonymous + one.file for one in part),
            max(one.children for one in part),
            max(one.data for one in part),
        )
        found[name] = _together(found[name], new) if name in found else new
    return found


def on_disk(folder: Path) -> int:
    """Return the bytes of all files below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _marks(root: Path, began: float) -> list[tuple[float, str]]:
    """Return when each stage began; the first chain of blocks is the run's own."""
    marks, chains = [], []
    for event in read_events(root):
        if event["time"] < began or "part" not in event:
            continue
        name = event["event"]
        if name == "block":
            if event["chain"] not in chains:
                chains.append(event["chain"])
            name = "blocks" if event["chain"] == chains[0] else "baseline"
        name = NAMES.get(name, name)
        if not marks or marks[-1][1] != name:
            marks.append((event["time"], name))
    return marks


def _block_seconds(looks: list[Look], root: Path, began: float) -> list[float]:
    blocks = [one for one in read_events(root) if one["event"] == "block" and one["time"] >= began]
    ends = [one for one in blocks if one["part"] == "done" and one["chain"] == blocks[0]["chain"]]
    times = [blocks[0]["time"], *(one["time"] for one in ends)] if ends else []
    spent = [part[-1].cpu_seconds - part[0].cpu_seconds for part in _parts(looks, times) if part]
    return [round(one, 3) for one in spent]


def _parts(looks: list[Look], times: list[float]) -> list[list[Look]]:
    return [_between(looks, since, until) for since, until in itertools.pairwise(times)]


def _between(looks: list[Look], since: float, until: float) -> list[Look]:
    """Return the looks of a span."""
    first = bisect.bisect_right(looks, since, key=lambda one: one.time)
    last = bisect.bisect_right(looks, until, key=lambda one: one.time)
    return looks[first:last]


def _together(one: StageCost, other: StageCost) -> StageCost:
    return StageCost(
        one.seconds + other.seconds,
        one.cpu_seconds + other.cpu_seconds,
        max(one.anonymous, other.anonymous),
        max(one.resident, other.resident),
        max(one.children, other.children),
        max(one.data, other.data),
    )


def _memory(pid: int) -> tuple[int, int, int] | None:
    """Return anonymous bytes of a process, those of files and its data; None: it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    lines = dict(line.split(":", 1) for line in text.splitlines())
    if "RssAnon" not in lines:
        return None
    kib = {name: int(lines[name].split()[0]) for name in KINDS}
    file = kib["RssFile"] + kib["RssShmem"]
    return kib["RssAnon"] * 1024, file * 1024, kib["VmData"] * 1024


def _below(pid: int) -> list[int]:
    """Return the processes that one has started, and those that these have."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
            for child in map(int, text.split()):
                found += [child, *_below(child)]
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def _cpu_seconds(pid: int) -> float:
    """Return what a process and those of its children that have ended have computed."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS
