"""One tensor at a time from safetensors files."""

import torch
from safetensors import safe_open
from torch import Tensor

from normtweak_core.model.checkpoint import StoredTensor


def read_tensor(stored: StoredTensor, name: str) -> Tensor:
    """Return one stored tensor as it is stored."""
    with safe_open(stored.file, framework="pt") as file:
        return file.get_tensor(name)


def largest_absolute(tensor: Tensor) -> float:
    """Return the largest absolute value; NaN where the tensor holds one, 0 where it is empty."""
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor)
    return float(torch.maximum(-low, high))
