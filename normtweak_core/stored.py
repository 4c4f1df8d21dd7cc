"""One tensor at a time from safetensors files, without a copy of any."""

import math
import mmap
import warnings

import torch
from torch import Tensor

from normtweak_core.model.checkpoint import StoredTensor

PIECE = 1 << 20  # values that are looked at together
TORCH_TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
TYPE_NAMES = {dtype: name for name, dtype in TORCH_TYPES.items()}


def read_tensor(stored: StoredTensor) -> Tensor:
    """Return one stored tensor as it is stored. It must not be written to.

    It lies in the pages of its file, which the kernel takes back when it needs them: they count
    neither as memory of this process nor towards `ulimit -d`, as those that safetensors maps do.
    """
    dtype = TORCH_TYPES[stored.dtype]
    if not math.prod(stored.shape):
        return torch.empty(stored.shape, dtype=dtype)
    with stored.file.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        raw = torch.frombuffer(
            pages, dtype=torch.uint8, count=stored.end - stored.start, offset=stored.start
        )
    if raw.data_ptr() % dtype.itemsize:  # a header of odd length
        raw = raw.clone()
    return raw.view(dtype).view(stored.shape)


def is_finite(tensor: Tensor) -> bool:
    """Say whether no value is NaN or infinite, with little memory beside the tensor."""
    return all(bool(part.isfinite().all()) for part in tensor.flatten().split(PIECE))


def largest_absolute(tensor: Tensor) -> float:
    """Return the largest absolute value; NaN where the tensor holds one, 0 where it is empty."""
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor)
    return float(torch.maximum(-low, high))
