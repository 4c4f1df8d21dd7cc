"""The processes that share a training, and what they tell each other."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Processes:
    """The processes of a training: one, or those of torch's process group, which has gloo.

    What one of them asks for, all ask for at the same place, in the same order.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> "Processes":
        """Return those of the group that this process has joined; it alone where it is in none."""
        if not distributed.is_initialized():
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this one writes what is written once."""
        return self.rank == 0

    def device(self, first: str) -> torch.device:
        """Return where this one computes.

        Args:
            first: Where the first one does; on GPUs the others take those behind it.
        """
        kind, _, number = first.partition(":")
        return torch.device(f"{kind}:{int(number) + self.rank}" if number else kind)

    def loads_on(self, first: str) -> str:
        """Return where a model is made: one that is going to be spread need not fit on a GPU."""
        return first if self.count == 1 else "cpu"

    def gathered(self, values: list[float]) -> list[list[float]]:
        """Return what each process says, in their order; all say equally many numbers."""
        if self.count == 1:
            return [values]
        own = torch.tensor(values, dtype=torch.float64)
        told = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(told, own)
        return [one.tolist() for one in told]

    def any(self, one: bool) -> bool:
        """Return whether one of them says so."""
        return any(said for [said] in self.gathered([float(one)]))

    def agreed(self, value: Any) -> Any:
        """Return what the first process says; the others' value does not matter."""
        if self.count == 1:
            return value
        said = [value]
        distributed.broadcast_object_list(said, src=0)
        return said[0]

    def wait(self) -> None:
        """Return when all are here."""
        if self.count > 1:
            distributed.barrier()


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be spread; all processes ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
