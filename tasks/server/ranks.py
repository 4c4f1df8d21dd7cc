"""Processes of one stage that compute together: started and ended together, and watched.

    with RankProcesses("tasks.stages.block_rank", arguments, range(1, 4), 4) as others:
        ...  # here goes rank 0, and calls `others.check` while it waits

They find each other as torchrun's do: by a store on the loopback that lives in this process, and by
torchrun's variables. None outlives this process (`tasks.server.watch`).
"""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from normtweak_core import memory
from normtweak_core.errors import ForeseenError
from normtweak_core.lazy import lazy
from tasks.engine.environment import peak_rss_bytes
from tasks.engine.log_files import log_file
from tasks.server.children import Child, last_lines
from tasks.server.ending import RESUME

if TYPE_CHECKING:
    from torch.distributed import TCPStore

distributed = lazy("torch.distributed")

HOST = "127.0.0.1"
SECONDS_BETWEEN_LOOKS = 0.05

_peak = 0  # see `peak_of_ranks`


class RankError(ForeseenError):
    """A process that computes together with others has ended."""


class RankProcesses:
    """Child processes with some of the ranks of a group; to be used as a context."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        ranks: range,
        size: int,
        inherited: tuple[int, ...] = (),
        variables: Mapping[str, str] | None = None,
    ):
        """Start them.

        Args:
            module: What `python -m` runs; see `Child` for the arguments it takes first.
            arguments: Further arguments, of all of them.
            ranks: Whose processes are started here; from 1 on where this process is rank 0.
            size: Ranks in all.
            inherited: File descriptors they get under the same numbers.
            variables: Of their environment, beside those of this process.
        """
        self.size = size
        self._listener = socket.create_server((HOST, 0))
        self.store: TCPStore = distributed.TCPStore(
            HOST,
            self._listener.getsockname()[1],
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=self._listener.detach(),  # on the loopback alone, and its from here on
        )
        self._children: dict[int, Child] = {}
        self._logs: dict[int, Path] = {}
        try:
            for rank in ranks:
                self._logs[rank] = log_file(f"process-{rank + 1}-of-{size}")
                self._children[rank] = Child(
                    module,
                    list(arguments),
                    {**os.environ, **self._variables(rank), **(variables or {})},
                    self._logs[rank],
                    inherited,
                )
                memory.count(self._children[rank].process.pid)
        except BaseException:
            self.stop()
            raise

    def _variables(self, rank: int) -> dict[str, str]:
        """Return what torchrun tells a process, on one machine."""
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "MASTER_PORT": self.port}
        sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), self.size)
        return {name: str(number) for name, number in (numbers | sizes).items()} | {
            "MASTER_ADDR": HOST,
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there: rank 0 makes none
            "TORCHELASTIC_RESTART_COUNT": "0",
        }

    @property
    def port(self) -> int:
        """Of the store."""
        return self.store.port

    def __enter__(self) -> "RankProcesses":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def check(self) -> None:
        """Return if all of them live.

        Raises:
            RankError: One has ended; the message says which, how, and what to do.
        """
        codes = {rank: child.process.poll() for rank, child in self._children.items()}
        self._raise_first({rank: code for rank, code in codes.items() if code is not None})

    def wait(self) -> None:
        """Return when all have ended well.

        Raises:
            RankError: One has not; the others go on until `stop`.
        """
        while True:
            codes = {rank: child.process.poll() for rank, child in self._children.items()}
            self._raise_first({rank: code for rank, code in codes.items() if code})
            if None not in codes.values():
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def stop(self) -> None:
        """End all of them, and remove the logs of those that have said nothing."""
        global _peak
        running = {rank: child for rank, child in self._children.items() if child.runs()}
        _peak = max(_peak, sum(map(_peak_of, running.values())))
        for child in running.values():
            child.process.terminate()
        for child in self._children.values():
            memory.forget(child.process.pid)
            child.stop()
        for log in self._logs.values():
            with contextlib.suppress(OSError):
                if not log.stat().st_size:
                    log.unlink()
        self._children, self._logs = {}, {}

    def _raise_first(self, ended: dict[int, int]) -> None:
        """Raise what tells of the process that ended first; the others may have failed of it."""
        if not ended:
            return
        rank = min(ended, key=lambda one: (ended[one] >= 0, one))
        log = self._logs[rank]
        last = last_lines(log)
        said = f" See {log}\nLast lines of it:\n{last}" if log.stat().st_size else ""
        raise RankError(
            f"process {rank + 1} of {self.size} that compute together {_told(ended[rank], last)}, "
            f"and the others with it; {RESUME}{said}"
        )


def _told(code: int, last: str) -> str:
    if code >= 0:
        return f"ended with exit code {code} ({last.splitlines()[-1][:200]})"
    name = signal.Signals(-code).name
    why = " (as the system does where memory runs out)" if name == "SIGKILL" else ""
    return f"was ended by {name}{why}"


def _peak_of(child: Child) -> int:
    with contextlib.suppress(OSError, KeyError):
        return peak_rss_bytes(child.process.pid)
    return 0


def peak_of_ranks() -> int:
    """Return the most memory that processes which computed together with this one have held.

    Pages that they share are counted for each that has touched them.
    """
    return _peak
