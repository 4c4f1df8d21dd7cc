"""Processes of one machine that exchange tensors by `torch.distributed`.

Gloo carries what is on the CPU, nccl what is on GPUs. Every exchange is waited for in a thread of
its own, while this one looks whether the other processes live: with one that has ended an exchange
may come to no end, and no signal is heard inside of it.
"""

import datetime
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normtweak_core.distributed.ranks import Ranks

LOOPBACK = "127.0.0.1"
INTERFACE = "GLOO_SOCKET_IFNAME"  # else gloo asks the network which address this machine has
FOREVER = datetime.timedelta(days=30)  # who waits is ended from outside, never by a time limit
SECONDS_BETWEEN_CHECKS = 0.1
SECONDS_TO_EXPLAIN = 20.0
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.uint8, torch.bool,
)  # fmt: skip


class Group(Ranks):
    """One of several processes; to be used as a context, which leaves the group at its end."""

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        size: int,
        device: str,
        check: Callable[[], None] = lambda: None,
    ):
        """Join; returns when all have.

        Args:
            store: Where the processes find each other.
            rank: Which of them this is.
            size: How many they are.
            device: Where this one computes, as torch names it.
            check: Returns if the others live, raises else; called often. Who has no such check is
                ended by the process that has.
        """
        self.rank, self.size = rank, size
        self._check, self._checked = check, 0.0
        self._device = torch.device(device)
        if sys.platform == "linux":
            os.environ.setdefault(INTERFACE, "lo")
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        store.set(f"here/{rank}", "")
        while not store.check([f"here/{one}" for one in range(size)]):
            time.sleep(SECONDS_BETWEEN_CHECKS)
            self.check()
        self._done(
            lambda: dist.init_process_group(
                "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
                store=store,
                rank=rank,
                world_size=size,
                timeout=FOREVER,
            )
        )

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Leave the group; nothing can be exchanged any more."""
        dist.destroy_process_group()

    def check(self) -> None:
        """Return if the others are there.

        Raises:
            ForeseenError: One of them has ended.
        """
        if time.monotonic() - self._checked >= SECONDS_BETWEEN_CHECKS:
            self._check()
            self._checked = time.monotonic()

    def meet(self) -> None:
        """Return when all have come here: what they have written to shared memory is there."""
        self._done(lambda: dist.all_reduce(torch.zeros(1)))  # each hears from each

    def agree(self, tensor: Tensor) -> None:
        """Overwrite a contiguous tensor, of one shape everywhere, with what the first one holds."""
        self._done(lambda: dist.broadcast(tensor, 0))

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Send tensors to the first process, which is another one and takes them by `receive`."""
        shapes = [[DTYPES.index(one.dtype), one.is_cuda, *one.shape] for one in tensors]
        told = torch.tensor([number for shape in shapes for number in (len(shape), *shape)])
        self._done(lambda: dist.send(torch.tensor([len(told)]), 0))
        for one in (told, *tensors):
            if one.numel():
                self._done(lambda one=one: dist.send(one.contiguous(), 0))

    def receive(self, rank: int) -> list[Tensor]:
        """Return, on the CPU or the GPU of this process, what another one has sent."""

        def taken(shape: Sequence[int], dtype: torch.dtype, device: Any = "cpu") -> Tensor:
            tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
            if tensor.numel():
                self._done(lambda: dist.recv(tensor, rank))
            return tensor

        told = taken(taken([1], torch.int64).tolist(), torch.int64).tolist()
        found = []
        while told:
            (kind, on_gpu, *shape), told = told[1 : 1 + told[0]], told[1 + told[0] :]
            found.append(taken(shape, DTYPES[kind], self._device if on_gpu else "cpu"))
        return found

    def _done(self, exchange: Callable[[], object]) -> None:
        """Return at the end of an exchange.

        Raises:
            ForeseenError: Another process has ended.
        """
        failed: list[BaseException] = []

        def carry_out() -> None:
            try:
                exchange()
            except BaseException as error:
                failed.append(error)

        waiting = threading.Thread(target=carry_out, daemon=True)
        waiting.start()
        while waiting.is_alive():
            waiting.join(SECONDS_BETWEEN_CHECKS)
            self.check()
        for error in failed:
            self._explained()
            raise error

    def _explained(self) -> None:
        """Raise what ended another process, if that is why an exchange has failed.

        A connection tells of its end before the process itself does. And who cannot tell leaves it
        to the one that can, which ends us meanwhile.
        """
        end = time.monotonic() + SECONDS_TO_EXPLAIN
        while time.monotonic() < end:
            self._check()
            time.sleep(SECONDS_BETWEEN_CHECKS)
