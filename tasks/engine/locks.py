"""Locks that the kernel frees when their holder dies, however it dies.

Prefect's own file locks carry no owner and no end: after SIGKILL the next run waits for ever. A
flock(2) belongs to an open file and goes with the process. Local disks only: NFS does not keep it
reliably.

A lock file may be removed only by a process that holds it (`remove_if_free`); whoever opens one
therefore checks, after locking, that the path still names the file it locked.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from normtweak_core.errors import ForeseenError

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
Seconds = float | None


class LockTimeoutError(ForeseenError, TimeoutError):
    """Another process held a lock for longer than we were told to wait."""


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """Return an open descriptor that holds the lock, or None where somebody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        if names_file(path, fd):
            return fd
        os.close(fd)  # removed between our open and our lock: the path is free again


def create_locked(path: Path) -> int:
    """Return a descriptor that holds the lock on a new file, never seen unlocked at `path`.

    For locks that say "alive": a reader that finds the file and can lock it knows the owner died.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        unnamed = path.with_name(f".new-{uuid.uuid4().hex}")
        fd = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            os.rename(unnamed, path)
        except FileNotFoundError:  # a sweep took it for a leftover before it was locked
            os.close(fd)
            continue
        return fd


def held(path: Path) -> bool:
    """Tell whether a living process holds the lock; a missing file is not held."""
    if not path.exists():
        return False
    # Shared, so that two probes never take each other for a holder.
    fd = try_lock(path, shared=True)
    if fd is None:
        return True
    os.close(fd)
    return False


def remove_if_free(path: Path) -> bool:
    """Remove a lock file nobody holds; return whether it was removed."""
    if not path.exists():
        return False
    fd = try_lock(path)
    if fd is None:
        return False
    path.unlink(missing_ok=True)
    os.close(fd)
    return True


@contextlib.contextmanager
def exclusive(path: Path, timeout: float | None = None, message: str = "") -> Iterator[None]:
    """Hold the lock for the duration of the block, waiting for it where needed.

    Not reentrant: a thread that takes the same path twice waits for itself.

    Args:
        path: Lock file; it is created, stays afterwards, and holds the pid of the holder.
        timeout: Seconds to wait; None: as long as it takes; 0: not at all.
        message: What is waited for, logged once if the lock is not free at once.

    Raises:
        LockTimeoutError: The lock was still held by another process after `timeout` seconds.
    """
    fd = _wait(path, timeout, message)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)


def _wait(path: Path, timeout: float | None, message: str) -> int:
    what = message or f"the lock {path.name}"
    end = None if timeout is None else time.monotonic() + timeout
    told = False
    while (fd := try_lock(path)) is None:
        if end is not None and time.monotonic() >= end:
            raise LockTimeoutError(
                f"{what}: needed, but process {_holder(path)} held it for {timeout:g} s; wait for "
                "that process to finish or stop it, then start again."
            )
        if not told:
            logger.info("Waiting for process %s: %s", _holder(path), what)
            told = True
        time.sleep(POLL_SECONDS)
    return fd


def _holder(path: Path) -> str:
    try:
        return path.read_text() or "(unknown)"
    except FileNotFoundError:
        return "(unknown)"


def names_file(path: Path, fd: int) -> bool:
    """Tell whether a path still names the file that was opened from it."""
    try:
        named, opened = os.stat(path), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


class FlockLockManager:
    """Prefect's lock manager on flock: one file per cache key, freed when the holder dies."""

    def __init__(self, directory: Path | Callable[[], Path]):
        """Keep the lock files in a folder, given as it is or as a function that returns it."""
        self.directory = directory
        self._held: dict[str, tuple[int, str]] = {}  # key -> descriptor, holder
        self._mutex = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "FlockLockManager":
        # CachePolicy.configure and Task.with_options copy deeply; a copy would not know what the
        # original holds.
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["directory"])

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: Seconds = None, hold_timeout: Seconds = None
    ) -> bool:
        """Wait for the lock; False when `acquire_timeout` passed. It is held until released."""
        attempts = self._attempts(key, holder, acquire_timeout)
        while (held := next(attempts)) is None:
            time.sleep(POLL_SECONDS)
        return held

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: Seconds = None, hold_timeout: Seconds = None
    ) -> bool:
        """As `acquire_lock`, without blocking the event loop."""
        attempts = self._attempts(key, holder, acquire_timeout)
        while (held := next(attempts)) is None:
            await asyncio.sleep(POLL_SECONDS)
        return held

    def _attempts(self, key: str, holder: str, seconds: float | None) -> Iterator[bool | None]:
        """Yield whether the lock is held, once that is settled, and None as long as it is not."""
        end = _deadline(seconds)
        while not self._try(key, holder):
            yield False if time.monotonic() >= end else None
        yield True

    def release_lock(self, key: str, holder: str) -> None:
        """Free the lock.

        Raises:
            ValueError: This holder does not hold it.
        """
        with self._mutex:
            fd, owner = self._held.get(key, (-1, ""))
            if fd == -1 or owner != holder:
                raise ValueError(f"{holder} must hold the lock on {key} to release it; it does not")
            del self._held[key]
            os.close(fd)

    def is_locked(self, key: str) -> bool:
        """Tell whether anybody, here or in another process, holds the lock."""
        with self._mutex:
            return key in self._held or held(self._path(key))

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Tell whether this holder has the lock."""
        with self._mutex:
            return key in self._held and self._held[key][1] == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until nobody holds the lock; False when `timeout` passed."""
        end = _deadline(timeout)
        while self.is_locked(key):
            if time.monotonic() >= end:
                return False
            time.sleep(POLL_SECONDS)
        return True

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """As `wait_for_lock`, without blocking the event loop."""
        return await asyncio.to_thread(self.wait_for_lock, key, timeout)

    def _path(self, key: str) -> Path:
        directory = self.directory if isinstance(self.directory, Path) else self.directory()
        return directory / (hashlib.sha256(key.encode()).hexdigest() + ".lock")

    def _try(self, key: str, holder: str) -> bool:
        with self._mutex:
            if key in self._held:
                return self._held[key][1] == holder
            fd = try_lock(self._path(key))
            if fd is None:
                return False
            self._held[key] = (fd, holder)
            return True


def _deadline(timeout: float | None) -> float:
    return float("inf") if timeout is None else time.monotonic() + timeout
