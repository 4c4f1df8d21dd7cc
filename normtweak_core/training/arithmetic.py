"""In which float type a training multiplies: what the recipe says, whatever device there is."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

TrainingDtype = Literal["float32", "bfloat16"]


def arithmetic(dtype: TrainingDtype, device: torch.device) -> AbstractContextManager:
    """Return a context in which products are computed in a float type.

    Weights, their gradients and the optimizer stay float32. Not left to `accelerate`, whose mixed
    precision would have to be the same for all trainings of a process.

    Args:
        dtype: ``bfloat16``: by `torch.autocast`; ``float32``: as the weights are.
        device: Where the products are computed; only its type counts.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
