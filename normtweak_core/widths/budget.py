"""The budget of a model's widths: bits per weight as they are stored; no torch."""

import math
from collections.abc import Iterable

from normtweak_core.errors import InputError
from normtweak_core.export.formats.stored_bytes import linear_bytes
from normtweak_core.quantization.config import MixedBits, QuantizationConfig

MEASURED_TOKENS = 4096  # of the held-out windows at most, and one window at least
Shape = tuple[int, int]  # outputs, inputs


def stored_bits(
    shapes: Iterable[Shape], width: int, config: QuantizationConfig, form: str, dtype: str
) -> int:
    """Return what some linears take on disk, in bits: codes, scales, zero points, indices.

    Args:
        shapes: Of the linears.
        width: Of a code.
        config: The grid.
        form: compressed-tensors or gptq.
        dtype: The export dtype.
    """
    grid = (width, config.group_size, config.symmetric, dtype)
    return 8 * sum(sum(linear_bytes(form, *grid, *one, mixed=True).values()) for one in shapes)


def check_budget(
    config: QuantizationConfig, shapes: list[Shape], form: str, dtype: str = "float16"
) -> None:
    """Accept an average between what the narrowest and what the widest choice truly cost.

    Args:
        config: Widths, budget and grid.
        shapes: Of all linears that are to be quantized.
        form: compressed-tensors or gptq.
        dtype: The export dtype; where it is not known yet, the narrowest that it may be.

    Raises:
        InputError: The average is outside; both numbers are told.
    """
    if not isinstance(config.bits, MixedBits):
        return
    weights, average = sum(rows * columns for rows, columns in shapes), config.bits.average
    least, most = (
        stored_bits(shapes, width, config, form, dtype) / weights
        for width in (config.widths[0], config.widths[-1])
    )
    if least <= average <= most:
        return
    narrow, wide = config.widths[0], config.widths[-1]
    beyond = average > most
    # Rounded inwards, so that what is told is allowed.
    least, most = math.ceil(least * 1e4) / 1e4, math.floor(most * 1e4) / 1e4
    raise InputError(
        f"must be from {least:.4f} to {most:.4f}, what {narrow} and {wide} bits truly cost here "
        "with scales and zero points",
        key="quantization.bits.average",
        found=f"found {average:g}",
        remedy=f"set bits to {wide}"
        if beyond
        else "raise it, choose from narrower widths, or set a larger group_size",
    )
