"""The processes that share the windows of a chain's blocks; this one is the first of them."""

import os

from normtweak_core.distributed.ranks import ALONE, Ranks
from normtweak_core.lazy import lazy
from normtweak_core.quantization.streams import Streams
from tasks.server.ranks import RankProcesses
from tasks.stages.block_rank import BlockWork

groups = lazy("normtweak_core.distributed.group")
memory = lazy("normtweak_core.distributed.shared_memory")
torch = lazy("torch")

MODULE = "tasks.stages.block_rank"


class SharedBlocks:
    """Starts the others with the first block that is worked on, and ends them with the chain."""

    def __init__(self, work: BlockWork, size: int):
        """Note what is to be done; nothing is started yet.

        Args:
            work: What the blocks have in common.
            size: Processes in all.
        """
        self._work, self._size = work, size
        self._file: int | None = None
        self._others: RankProcesses | None = None
        self._group: Ranks = ALONE
        self._streams: Streams | None = None

    def start(self) -> None:
        """Start the other processes, which open the model while this one goes on."""
        if self._size == 1 or self._others is not None:
            return
        self._file = memory.shared_file()
        arguments = [f"--streams={self._file}", f"--work={self._work.model_dump_json()}"]
        self._others = RankProcesses(
            MODULE, arguments, range(1, self._size), self._size, (self._file,)
        )

    def begin(self, index: int, streams: Streams) -> tuple[Streams, Ranks]:
        """Return the streams where all processes see them, and those that begin with a block.

        Raises:
            RankError: One of them has ended.
        """
        if self._others is None:
            return streams, ALONE
        if self._streams is None:
            self._join(streams)
        held = self._streams
        for mine, given in ((held.x_f, streams.x_f), (held.x_q, streams.x_q)):
            if mine is not given:
                mine.copy_(given)
        self._group.number(index)
        return held, self._group

    def _join(self, streams: Streams) -> None:
        others, work = self._others, self._work
        self._group = groups.Group(others.store, 0, self._size, work.device, others.check)
        shape = torch.tensor(streams.x_q.shape)
        self._streams = work.room(self._file, shape.tolist())
        self._group.agree(shape)

    def end(self) -> None:
        """End the other processes, if there are any."""
        if self._others is not None:
            self._others.stop()  # first: an exchange that still waits ends with them
            os.close(self._file)
        if self._group is not ALONE:
            self._group.leave()
        self._others, self._streams, self._group = None, None, ALONE
