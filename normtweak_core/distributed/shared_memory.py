"""Tensors that several processes see: what one writes, the others read."""

import math
import mmap
import os
import sys
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor


def shared_file() -> int:
    """Return the descriptor of an empty file without a name, as `shared_tensors` fills it.

    Child processes inherit it; it is gone with the last of them.
    """
    if sys.platform == "linux":  # in memory alone
        return os.memfd_create("normtweak")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def shared_tensors(file: int, count: int, shape: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Return some tensors of one shape that lie in a file one behind the other.

    Memory is taken as they are written to.

    Args:
        file: Of `shared_file`, the same in all processes.
        count: How many tensors.
        shape: Of each.
        dtype: Of each.
    """
    size = math.prod(shape) * dtype.itemsize
    os.ftruncate(file, count * size)  # the same number of bytes by whichever process
    held = mmap.mmap(file, count * size)
    return [
        torch.frombuffer(held, dtype=dtype, count=math.prod(shape), offset=i * size).view(*shape)
        for i in range(count)
    ]
