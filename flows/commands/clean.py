"""`normtweak clean` and `status`: what the state root holds, and what of it can go."""

import argparse
import dataclasses
import json
import time

from flows.commands.command import STATE, Command
from flows.commands.execution import print_line
from flows.commands.failures import EXIT_OK
from tasks.engine.cleaning import clean
from tasks.engine.environment import state_root
from tasks.engine.progress import readable_bytes, readable_seconds
from tasks.server import status


def run_clean(options: argparse.Namespace) -> int:
    """Remove what can be made again and print what that was."""
    root = state_root()
    removed = clean(root, options.everything)
    for one in removed:
        if one.files:
            noun = "file" if one.files == 1 else "files"
            print_line(f"{one.kind}: {one.files} {noun}, {readable_bytes(one.size)}")
    total = sum(one.size for one in removed)
    print_line(f"removed {total} bytes ({readable_bytes(total)}) under {root}")
    return EXIT_OK


def run_status(options: argparse.Namespace) -> int:
    """Print what works on the state root, what waits there and what it holds."""
    found = status.status_of(state_root())
    if options.json:
        print_line(json.dumps(dataclasses.asdict(found), indent=1))
        return EXIT_OK
    rows = [("root", found.root)]
    rows.append(("server", found.server or "none stays; each run starts its own"))
    rows += [("run", _working(run)) for run in found.runs] or [("run", "none works here")]
    rows += [("waits", f"{name}: `normtweak register --pending`") for name in found.waiting]
    rows.append(("finished stages", f"{found.stages}, which the next run finds"))
    for one in found.locks:
        holders = " ".join(map(str, one.pids)) or "a process that is not told"
        rows.append(("lock", f"{one.name}: held by {holders}"))
    for kind in sorted(found.disk, key=lambda disk: -disk.size):
        kept = "" if kind.made_again else "; nothing makes it again"
        noun = "file" if kind.files == 1 else "files"
        told = f"{kind.kind} {readable_bytes(kind.size)}, {kind.files} {noun}{kept}"
        rows.append(("disk", told))
    for name, told in rows:
        print_line(f"{name + ':':<17}{told}")
    return EXIT_OK


def _working(run: "status.WorkingRun") -> str:
    if run.last_time is None or run.began is None:
        return f"{run.flow_run}: has begun"
    now = time.time()
    since, ago = readable_seconds(now - run.began), readable_seconds(now - run.last_time)
    return f"{run.flow_run}, process {run.pid}, for {since}; {ago} ago: {run.last}"


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same as JSON, times since 1970")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all",
        action="store_true",
        dest="everything",
        help="remove all that is made again: finished stages, exports, evaluations, studies, "
        "unfinished trainings, logs and the event file too; registered versions keep their own "
        "copies and stay, as does Prefect's history",
    )


COMMANDS = {
    "clean": Command(
        "Remove streams between blocks, temporary files, what rebuilds have left, and artefacts\n"
        "that no finished stage refers to. Exports, the registry and finished stages stay.\n"
        "Refused while a run is alive.",
        ["clean", "clean --all"],
        _add_arguments,
        run_clean,
    ),
    "status": Command(
        "Tell which runs work on the state root and how far they are, which finished models wait\n"
        "for the registry, who holds which lock, and the disk by kind. Reads its files alone: no\n"
        f"server is asked and nothing changes.\n{STATE}",
        ["status", "status --json"],
        _add_status,
        run_status,
    ),
}
