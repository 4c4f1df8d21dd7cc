"""`normtweak clean` and `status`: what the state root holds, and what of it can go."""

import argparse
import dataclasses
import json
import re
import time

from pydantic import ByteSize, TypeAdapter, ValidationError

from flows.commands.command import STATE, Command
from flows.commands.execution import print_line
from flows.commands.failures import EXIT_OK
from normtweak_core.errors import InputError
from tasks.engine.cleaning import Limits, clean
from tasks.engine.environment import state_root
from tasks.engine.progress import readable_bytes, readable_seconds
from tasks.server import status

HOURS = {"h": 1, "d": 24, "w": 168}


def run_clean(options: argparse.Namespace) -> int:
    """Remove what can be made again and print what that was."""
    root = state_root()
    if options.everything and (options.older_than or options.keep is not None):
        raise InputError("--all removes whatever is made again: leave out --older-than and --keep.")
    removed = clean(root, options.everything, Limits(options.older_than, options.keep))
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
    parser.add_argument(
        "--older-than",
        type=_seconds,
        metavar="AGE",
        help="remove finished stages, their exports and logs that were made longer ago, as 30d or "
        "12h; the next run makes what it needs again",
    )
    parser.add_argument(
        "--keep",
        type=_size,
        metavar="SIZE",
        help="remove the oldest finished stages until files of the others take no more, as 20GB",
    )


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"must be an age such as 12h, 30d or 4w; found {text!r}")
    return float(found[1]) * HOURS[found[2]] * 3600


def _size(text: str) -> int:
    try:
        size = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        size = -1
    if size < 0:
        raise argparse.ArgumentTypeError(f"must be a size such as 20GB or 5GiB; found {text!r}")
    return int(size)


COMMANDS = {
    "clean": Command(
        "Remove streams between blocks, temporary files, what rebuilds have left, and artefacts\n"
        "that no finished stage refers to. Exports, the registry and finished stages stay.\n"
        "Refused while a run is alive.",
        ["clean", "clean --older-than 30d --keep 50GB", "clean --all"],
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
