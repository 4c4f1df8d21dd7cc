"""Bytes that this process, with those that work for it, may still take.

Of the machine, of its control group, of a device.
"""

import contextlib
import ctypes
import gc
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from normtweak_core.lazy import lazy

psutil = lazy("psutil")
torch = lazy("torch")

CONTROL_GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
# And what of a process counts towards them.
HARD_LIMITS = ((resource.RLIMIT_AS, "vms"), (resource.RLIMIT_DATA, "data"))

M_MMAP_THRESHOLD, MAPPED = -3, 1 << 22  # mallopt(3); bytes of a block that the kernel maps

WHOLE = 0.75  # of what is free, that all weights of a model may take
KEPT = 0.5  # and those that stay in memory of a model that would take more

_most: int | None = None  # bytes that this process shall hold
_others: set[int] = set()  # processes whose memory counts as this one's
_looked_through = False  # all objects, by `give_back`


@contextlib.contextmanager
def limited(most: int | None) -> Iterator[None]:
    """Count no more than so many bytes of the machine as this process' own; None: all there are.

    Nothing is refused: what asks how much is free gets less. A GPU's memory is not counted.
    """
    global _most
    before, _most = _most, most
    try:
        yield
    finally:
        _most = before


def count(pid: int) -> None:
    """Count what another process holds as this process' own, until `forget`."""
    _others.add(pid)


def forget(pid: int) -> None:
    """Count a process no more."""
    _others.discard(pid)


def held_bytes() -> int:
    """Return the bytes that this process and those counted with it hold, mapped files left out."""
    held = 0
    for pid in (os.getpid(), *_others):
        with contextlib.suppress(psutil.NoSuchProcess):
            info = psutil.Process(pid).memory_info()
            held += info.rss - getattr(info, "shared", 0)
    return held


def map_large_blocks() -> None:
    """Have blocks of 4 MiB and more go back to the machine as soon as they are freed, from now on.

    Left alone the allocator keeps pages of blocks up to 32 MiB, and what is a little larger than
    what was freed finds no room there: a process holds much more than it uses. It costs up to a
    tenth of the time of work on such blocks.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another libc than glibc
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED)


def hard_limit() -> int | None:
    """Return the bytes that the kernel lets this process hold (`ulimit -d`, `-v`); None: any."""
    limits = (resource.getrlimit(kind)[0] for kind, _ in HARD_LIMITS)
    return min((one for one in limits if one != resource.RLIM_INFINITY), default=None)


def give_back() -> None:
    """Free what nothing refers to, and hand pages that hold nothing back to the machine.

    The allocator keeps most of what was freed, and models refer to themselves: without this a
    stage holds its own peak beside what the stages before it have left. What is there at the first
    call is mostly modules, half a million objects, and is not looked through again.
    """
    global _looked_through
    gc.collect()
    if not _looked_through:
        gc.freeze()
        _looked_through = True
    _trim()


def _trim() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another libc than glibc
            ctypes.CDLL(None).malloc_trim(0)


def available_memory(device: str) -> int:
    """Return the bytes free on a device: a GPU's own, or the machine's within this process' limits.

    Limits are those of its control groups (versions 1 and 2), of its address space and of what it
    may write there, and `limited`.
    """
    if device.partition(":")[0] == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        # What torch holds of the device and does not use.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    left = [psutil.virtual_memory().available, *group_headrooms()]
    for kind, held in HARD_LIMITS:
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            left.append(limit - getattr(psutil.Process().memory_info(), held))
    if _most is not None:
        _trim()
        left.append(_most - held_bytes())
    return max(0, min(left))


def fits(size: int, device: str, beside: int = 0) -> bool:
    """Say whether a whole model has room on a device.

    Args:
        size: Bytes of its weights.
        device: Where it computes.
        beside: Bytes that will be taken there beside it.
    """
    return size <= WHOLE * (available_memory(device) - beside)


def group_headrooms(root: Path = CONTROL_GROUPS, membership: Path = MEMBERSHIP) -> list[int]:
    """Return the bytes left below the limit of each control group that this process is in.

    Args:
        root: Where the groups are mounted.
        membership: The process' list of its groups.
    """
    if not membership.is_file():
        return []
    left = []
    for line in membership.read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if not controllers:
            left += _headrooms(root, name, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            files = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            left += _headrooms(root / "memory", name, *files)
    return left


def _headrooms(top: Path, name: str, limit: str, usage: str, reclaimed: str) -> Iterator[int]:
    """Yield what a group and those above it leave; pages of files count as free."""
    group = top / name.lstrip("/")
    for place in (group, *group.parents):
        if not place.is_relative_to(top) or not (place / limit).is_file():
            continue  # a container shows only its own group; the root of version 2 has no limit
        most = (place / limit).read_text().strip()
        if most == "max":
            continue
        stat = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
        yield int(most) - int((place / usage).read_text()) + int(stat.get(reclaimed, 0))
