"""Ranks that are threads of one process: the same lines as several processes, without their start.

The exchange of real processes is in `tests.tasks.test_shared_blocks`.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from normtweak_core.distributed.ranks import Ranks


class ThreadRanks(Ranks):
    def __init__(self, rank: int, size: int, common: dict[str, Any]):
        self.rank, self.size, self.common = rank, size, common

    def meet(self) -> None:
        self.common["barrier"].wait(60)

    def agree(self, tensor: Tensor) -> None:
        if self.is_first:
            self.common["told"] = tensor.clone()
        self.meet()
        tensor.copy_(self.common["told"])
        self.meet()

    def send(self, tensors) -> None:
        self.common[self.rank].put([one.clone() for one in tensors])

    def receive(self, rank: int) -> list[Tensor]:
        return self.common[rank].get(timeout=60)


def together(size: int, work: Callable[[Ranks], Any]) -> Any:
    """Return what the first of some ranks returns of a work that all of them do at once."""
    common = {"barrier": threading.Barrier(size)} | {rank: queue.Queue() for rank in range(size)}
    found: dict[int, Any] = {}

    def do(rank: int) -> None:
        try:
            found[rank] = work(ThreadRanks(rank, size, common))
        except BaseException as error:
            found[rank] = error
            common["barrier"].abort()

    threads = [threading.Thread(target=do, args=(rank,)) for rank in range(1, size)]
    for thread in threads:
        thread.start()
    do(0)
    for thread in threads:
        thread.join()
    for result in found.values():
        if isinstance(result, BaseException):
            raise result
    return found[0]
