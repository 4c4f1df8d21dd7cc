"""What was found by reading whole files, kept until a file is another one; no torch.

A file counts as the same while its path, size, inode, and times of modification and change are;
all of them are asked each time. Nobody can set the time of change, so bytes that a program altered
are seen even where the time of modification was set back. Not seen is what alters bytes past the
file system: a failing disk, a clock that was set back, a remote folder that keeps old times.

On disk is one line for each file, appended by a single write and checked by its own hash. Several
processes may write at once, and a line that a kill tore is passed over.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SETTLED = 2_000_000_000  # ns: a file that changed later may change again within one tick
WORTH_KEEPING = 1 << 20  # bytes: smaller files are read about as fast as they are looked up

Key = tuple[str, str, int, int, int, int]  # what, path, size, inode, mtime_ns, ctime_ns


class FileMemo:
    """Remembers values of files, in this process and, once it is told to, on disk."""

    def __init__(self, path: Path):
        """Read what other processes have written down at ``path``, if there is such a file."""
        self._path = path
        self._found: dict[Key, Any] = _read(path)
        self._waiting: list[str] | None = []  # lines; None: they are written at once

    def of(self, file: Path, what: str, read: Callable[[Path], Any]) -> Any:
        """Return what reading a file gives, which is done again only if the file is another one.

        Args:
            file: It exists.
            what: Name of the value; it changes whenever ``read`` does.
            read: Returns plain data, as JSON holds them.
        """
        key = _key(file, what)
        if key in self._found:
            return self._found[key]
        value = read(file)
        if _key(file, what) == key:  # nobody wrote meanwhile
            self.keep(file, what, value)
        return value

    def keep(self, file: Path, what: str, value: Any) -> None:
        """Remember what the bytes of a file are known to give."""
        key = _key(file, what)
        self._found[key] = value
        if key[2] >= WORTH_KEEPING and time.time_ns() - max(key[4:]) > SETTLED:
            text = json.dumps([*key, value])
            self._write([f"{_digest(text)} {text}"])

    def write_down(self) -> None:
        """Write what was remembered so far, and from now on all at once."""
        waiting, self._waiting = self._waiting or [], None
        self._write(waiting)

    def _write(self, lines: list[str]) -> None:
        if self._waiting is not None:
            self._waiting += lines
        elif lines:
            # A line feed in front as well: the line before may be a torn one.
            data = "".join(f"\n{line}\n" for line in lines).encode()
            with contextlib.suppress(OSError):  # a full disk: then it is read again next time
                fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
                try:
                    os.write(fd, data)
                finally:
                    os.close(fd)


def _key(file: Path, what: str) -> Key:
    found = file.stat()
    times = found.st_mtime_ns, found.st_ctime_ns
    return what, str(file.absolute()), found.st_size, found.st_ino, *times


def _read(path: Path) -> dict[Key, Any]:
    found: dict[Key, Any] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return found
    for line in lines:
        digest, _, text = line.decode(errors="replace").partition(" ")
        if text and _digest(text) == digest:
            *key, value = json.loads(text)
            found[tuple(key)] = value
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
