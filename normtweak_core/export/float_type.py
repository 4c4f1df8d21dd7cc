"""The float type an export is written in, and numbers rounded to it."""

import math
from pathlib import Path

import torch

from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.export.checks import gptq_dtype_error
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.stored import largest_absolute, read_tensor
from normtweak_core.model.checkpoint import stored_tensors

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export_dtype(config: ExportConfig, max_abs: float) -> torch.dtype:
    """Return the float type for a model whose largest absolute value is ``max_abs``.

    ``auto`` is float16 where the value fits its range and bfloat16 otherwise. bfloat16 keeps only
    eight significant bits, which can erase a small norm tweak: callers report when it was taken.

    Raises:
        InputError: float16 was asked for and cannot hold ``max_abs``, or the format is gptq, which
            needs float16, and the answer another.

    """
    fits = max_abs <= torch.finfo(torch.float16).max
    wanted = ("float16" if fits else "bfloat16") if config.dtype == "auto" else config.dtype
    if wanted == "float16" and not fits:
        raise InputError(
            f"export.dtype: float16 holds values up to 65504; the model has {max_abs:.6g}. "
            "Use auto, bfloat16 or float32."
        )
    if config.format == "gptq" and wanted != "float16":
        raise gptq_dtype_error(wanted)
    return DTYPES[wanted]


def resolve_export_dtype(config: ExportConfig, source: Path) -> torch.dtype:
    """Return the float type for the model in ``source``; its weights are read only if they decide.

    Raises:
        InputError: As ``export_dtype``.
        NonFiniteError: A tensor holds NaN or infinity.

    """
    if config.dtype in ("float32", "bfloat16"):
        return export_dtype(config, max_abs=0.0)
    largest = 0.0
    for name, stored in stored_tensors(source).items():
        tensor = read_tensor(stored, name)
        if tensor.is_floating_point():
            value = largest_absolute(tensor)
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"weights must be finite; {name} is not. Fetch or save the model again."
                )
            largest = max(largest, value)
    return export_dtype(config, largest)
