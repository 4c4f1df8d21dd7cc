"""The packed linears of a checkpoint, from the headers of its files; no torch.

========== ======================== ==================== =========================================
layout     codes                    zero points          scales, further
========== ======================== ==================== =========================================
gptq       qweight [in*b/32, out]   qzeros [g, out*b/32] scales [g, out], g_idx [in] or none
awq        qweight [in, out*b/32]   qzeros [g, out*b/32] scales [g, out]
compressed weight_packed            weight_zero_point    weight_scale [out, g], weight_shape,
           [out, in*b/32]           [out*b/32, g]/none   weight_g_idx [in] or none
========== ======================== ==================== =========================================
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from normtweak_core.errors import InputError
from normtweak_core.export.foreign.layouts import Layout, Packing
from normtweak_core.model.checkpoint import StoredTensor, stored_tensors

# The tensors of one linear by the last part of their names; the first belongs to no other module.
NEEDED: dict[Layout, tuple[str, ...]] = {
    "gptq": ("qweight", "qzeros", "scales"),
    "awq": ("qweight", "qzeros", "scales"),
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_shape"),
}
OTHER: dict[Layout, tuple[str, ...]] = {
    "gptq": ("g_idx",),
    "awq": (),
    "compressed-tensors": ("weight_zero_point", "weight_g_idx"),
}
WIDTHS = (2, 3, 4, 8)
AWQ_BITS = 4  # its order of nibbles is known of no other width
WORD = 32
OLD_CODES_PER_WORD = 10  # of 3 bits in compressed-tensors before 0.19: two bits stay empty


@dataclass(frozen=True)
class PackedLinear:
    """One packed linear."""

    name: str
    packing: Packing
    rows: int
    columns: int
    bits: int
    group_size: int | None  # None: one scale a row
    symmetric: bool
    parts: Mapping[str, StoredTensor]  # by the last part of their names


def packed_linears(folder: Path, packing: Packing) -> dict[str, PackedLinear]:
    """Return the packed linears of a checkpoint by their names in its files.

    Raises:
        InputError: There is none, a tensor is missing, or its shape is none that the layout has.
    """
    stored, found = stored_tensors(folder), {}
    marker = f".{NEEDED[packing.layout][0]}"
    for name in sorted(stored):
        if name.endswith(marker):
            linear = name.removesuffix(marker)
            found[linear] = _linear(folder, linear, packing, stored)
    if not found:
        raise _odd(folder, f"tensors named *{marker}", "it has none")
    if all(one.group_size == one.columns for one in found.values()):
        return {n: dataclasses.replace(one, group_size=None) for n, one in found.items()}
    return found


def unpacked_tensors(folder: Path, linears: Mapping[str, PackedLinear]) -> dict[str, StoredTensor]:
    """Return all tensors of a checkpoint that are no part of a packed linear, by name."""
    packed = {f"{name}.{part}" for name, one in linears.items() for part in one.parts}
    return {name: one for name, one in stored_tensors(folder).items() if name not in packed}


def _linear(
    folder: Path, name: str, packing: Packing, stored: Mapping[str, StoredTensor]
) -> PackedLinear:
    layout = packing.layout
    parts = {
        part: stored[f"{name}.{part}"]
        for part in (*NEEDED[layout], *OTHER[layout])
        if f"{name}.{part}" in stored
    }
    if missing := [part for part in NEEDED[layout] if part not in parts]:
        raise _odd(folder, f"{', '.join(NEEDED[layout])} of {name}", f"it lacks {missing[0]}")
    if layout == "compressed-tensors":
        rows, columns, bits = _compressed_shape(packing, parts)
        groups = parts["weight_scale"].shape[-1] if len(parts["weight_scale"].shape) == 2 else 0
        symmetric = "weight_zero_point" not in parts
        wanted = {"weight_scale": (rows, groups)}
    else:
        groups, rows = parts["scales"].shape
        columns, bits = _words_shape(packing, parts, rows)
        symmetric = packing.symmetric
        wanted = {"qzeros": (groups, num_words(rows, bits))}
    told = f"{rows} x {columns} weights in {bits:g} bits and {groups} groups"
    allowed = (AWQ_BITS,) if layout == "awq" else WIDTHS
    if bits not in allowed or not groups or columns % groups:
        widths = " or ".join(map(str, allowed))
        raise _odd(folder, f"{name} in {widths} bits with equal groups", f"its shapes tell {told}")
    for part, shape in wanted.items():
        if parts[part].shape != shape:
            found = list(parts[part].shape)
            raise _odd(folder, f"{name}.{part} of shape {list(shape)} ({told})", f"it is {found}")
    size = columns // groups
    return PackedLinear(name, packing, rows, columns, int(bits), size, symmetric, parts)


def _words_shape(
    packing: Packing, parts: Mapping[str, StoredTensor], rows: int
) -> tuple[int, int | float]:
    """Return input width and bits of a linear in the layouts gptq and awq."""
    words = parts["qweight"].shape
    if packing.layout == "awq":
        return words[0], words[1] * WORD / rows
    if "g_idx" in parts:
        columns = parts["g_idx"].shape[0]
    else:
        columns = words[0] * WORD // (packing.bits or AWQ_BITS)
    return columns, words[0] * WORD / columns if columns else 0


def _compressed_shape(
    packing: Packing, parts: Mapping[str, StoredTensor]
) -> tuple[int, int, int | float]:
    rows, words = parts["weight_packed"].shape
    place = parts["weight_shape"]
    with place.file.open("rb") as file:
        file.seek(place.start)
        size = (place.end - place.start) // 2
        told = [int.from_bytes(file.read(size), "little") for _ in range(2)]
    columns = told[1]
    fitting = [bits for bits in WIDTHS if num_words(columns, bits) == words]
    if packing.bits in fitting or (packing.bits is None and fitting):
        return rows, columns, packing.bits or fitting[0]
    if packing.bits in (3, None) and words == -(-columns // OLD_CODES_PER_WORD):
        return rows, columns, 3
    return rows, columns, words * WORD / columns if columns else 0


def is_old_3_bit(linear: PackedLinear) -> bool:
    """Say whether 3-bit codes of compressed-tensors do not straddle words."""
    words = linear.parts["weight_packed"].shape[1]
    return linear.bits == 3 and words != num_words(linear.columns, 3)


def num_words(length: int, bits: int | float) -> int:
    """Return how many words a row of codes fills."""
    return math.ceil(length * bits / WORD)


def _odd(folder: Path, required: str, found: str) -> InputError:
    return InputError(
        f"must hold {required}",
        key="base",
        found=f"{folder}: {found}",
        remedy="fetch or save the export again",
    )
