"""Whether a command can write where it is to write."""

import math
import os
from collections.abc import Callable
from pathlib import Path

from flows.checks.machine import existing_folder, free_bytes
from normtweak_core.errors import InputError
from tasks.engine.environment import HOME_VARIABLE
from tasks.engine.progress import readable_bytes


def check_result_file(path: Path) -> None:
    """Accept a path that a result file can be written to.

    Raises:
        InputError: It is a folder, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise InputError(f"--result must name a file; {path} is a folder: add a file name.")
    folder = path.parent
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise InputError(
            f"--result needs an existing folder; {folder} {found}: create it or choose another."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"--result needs a folder you may write to; {folder} is not one: choose another."
        )


def check_state_root(root: Path) -> None:
    """Accept a state root that exists or can be made.

    Raises:
        InputError: It is, or lies below, a file or a folder that cannot be written.
    """
    advice = f"choose a folder you may write to with {HOME_VARIABLE}."
    there = existing_folder(root)
    if not there.is_dir():
        raise InputError(
            f"All state is kept under {root}, but {there} is a file, not a folder; {advice}"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"All state is kept under {root}, which must be writable, but {there} is not; {advice}"
        )


def check_disk(
    disk: dict[str, int], root: Path, shares_there: Callable[[], dict[str, float]] = dict
) -> None:
    """Accept a disk with room for what a run has still to write at most.

    Args:
        disk: Bytes that the whole run writes at most, by what they are.
        root: The state root.
        shares_there: Returns which share of each lies there already; asked where the room does not
            do for all, since it takes seconds.

    Raises:
        InputError: It has less.
    """
    free = free_bytes(existing_folder(root))
    if free >= sum(disk.values()):
        return
    there = shares_there()
    left = {what: math.ceil(size * (1 - there.get(what, 0.0))) for what, size in disk.items()}
    needed, most = sum(left.values()), max(left, key=left.__getitem__)
    if free < needed:
        raise InputError(
            f"this run may write {readable_bytes(needed)} under {root}, "
            f"{readable_bytes(left[most])} of it {most}; its disk has {readable_bytes(free)} "
            f"free: make room (`normtweak clean`), or set {HOME_VARIABLE} to a larger disk."
        )
