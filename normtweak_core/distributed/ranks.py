"""Processes that work on one block: which share is whose, and what they tell each other.

All of them run the same lines in the same order; what only one of them does stands behind
`is_first`. A single process is the same with nobody to talk to.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Ranks:
    """One process by itself: it owns everything, and all exchange is done at once."""

    rank, size = 0, 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that solves, trains, and returns the result."""
        return self.rank == 0

    def check(self) -> None:
        """Return if the others are there.

        Raises:
            ForeseenError: One of them has ended.
        """

    def meet(self) -> None:
        """Return when all have come here: what they have written to shared memory is there."""

    def agree(self, tensor: Tensor) -> None:
        """Overwrite a contiguous tensor, of one shape everywhere, with what the first one holds."""

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Send tensors to the first process, which is another one and takes them by `receive`."""
        raise NotImplementedError

    def receive(self, rank: int) -> list[Tensor]:
        """Return, on the CPU or the GPU they came from, what a process has sent."""
        raise NotImplementedError

    def collected(self, tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Yield the tensors of each process in order to the first one, and nothing to others."""
        if not self.is_first:
            self.send(tensors)
            return
        yield list(tensors)
        for rank in range(1, self.size):
            yield self.receive(rank)

    def number(self, number: int) -> int:
        """Return the number that the first process gives."""
        held = torch.tensor(number)
        self.agree(held)
        return int(held)

    def share(self, count: int, rank: int | None = None) -> range:
        """Return which of some things in a row are this process', or another's."""
        rank = self.rank if rank is None else rank
        return range(count * rank // self.size, count * (rank + 1) // self.size)


ALONE = Ranks()
