"""A packed linear of another tool on the grid of ours: the same codes, scales and zero points.

Sources, read in their code: GPTQModel 7.7 (`dequantize_weight`, `convert_gptq_v1_to_v2_format`),
AutoRound 0.16 (`qlinear_torch`, `qlinear_torch_zp`, `WQLinear_GEMM`), compressed-tensors 0.19 and
0.20 (`pack_to_int32`).
"""

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from normtweak_core.errors import InputError
from normtweak_core.export.foreign.linears import (
    OLD_CODES_PER_WORD,
    WORD,
    PackedLinear,
    is_old_3_bit,
)
from normtweak_core.export.formats.packing import pack_rows, unpack_rows
from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.stored import read_tensor

# Which of eight consecutive outputs lies in the n-th four bits of a word of awq.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpacked(linear: PackedLinear) -> QuantizedWeight:
    """Return a linear on its grid.

    Raises:
        InputError: A scale is NaN, infinite or zero, groups have not equally many columns, or zero
            points of a symmetric grid are not in its middle.
    """
    parts = {name: read_tensor(place) for name, place in linear.parts.items()}
    if linear.packing.layout == "compressed-tensors":
        codes, zeros, scales, g_idx = _compressed(linear, parts)
    elif linear.packing.layout == "awq":
        codes, zeros, scales, g_idx = _awq(linear, parts)
    else:
        codes, zeros, scales, g_idx = _gptq(linear, parts)
    scales = scales.to(torch.float32)
    if not (scales.isfinite().all() and (scales != 0).all()):
        raise _odd(linear, "scales that are finite and not zero", "some are not")
    if linear.symmetric and not (zeros == 2 ** (linear.bits - 1)).all():
        middle = 2 ** (linear.bits - 1)
        raise _odd(linear, f"zero points of {middle}, being symmetric", "some are others")
    order = None if g_idx is None else _order(linear, g_idx.to(torch.int32))
    return QuantizedWeight(
        codes.contiguous(),
        scales.contiguous(),
        zeros.contiguous(),
        linear.bits,
        linear.group_size,
        linear.symmetric,
        g_idx=order,
    )


Parts = tuple[UInt8[Tensor, "out in"], UInt8[Tensor, "out groups"], Tensor, Tensor | None]


def _gptq(linear: PackedLinear, parts: dict[str, Tensor]) -> Parts:
    rows, columns, bits = linear.rows, linear.columns, linear.bits
    codes = unpack_rows(parts["qweight"].T.contiguous(), bits, columns)
    words = parts["qzeros"]
    if linear.packing.minus_one and bits != 3:
        # Whole words, as those did it who subtracted: a zero point of 0 has borrowed from its
        # neighbour.
        ones = torch.ones(1, WORD // bits, dtype=torch.uint8)
        words = words + pack_rows(ones, bits)
    zeros = unpack_rows(words, bits, rows)
    if linear.packing.minus_one and bits == 3:  # whose codes straddle words: one by one
        zeros = (zeros + 1) % 2**bits
    return codes, zeros.T, parts["scales"].T, parts.get("g_idx")


def _awq(linear: PackedLinear, parts: dict[str, Tensor]) -> Parts:
    codes, zeros = (
        _in_order(unpack_rows(parts[name], linear.bits, linear.rows))
        for name in ("qweight", "qzeros")
    )
    return codes.T, zeros.T, parts["scales"].T, None


def _in_order(interleaved: UInt8[Tensor, "any out"]) -> UInt8[Tensor, "any out"]:
    eights = interleaved.unflatten(1, (-1, len(AWQ_ORDER)))
    ordered = torch.empty_like(eights)
    ordered[..., list(AWQ_ORDER)] = eights
    return ordered.flatten(1)


def _compressed(linear: PackedLinear, parts: dict[str, Tensor]) -> Parts:
    unpack = _unpack_old_3_bits if is_old_3_bit(linear) else unpack_rows
    codes = unpack(parts["weight_packed"], linear.bits, linear.columns)
    scales = parts["weight_scale"]
    if linear.symmetric:
        zeros = torch.full(scales.shape, 2 ** (linear.bits - 1), dtype=torch.uint8)
    else:
        packed = parts["weight_zero_point"].T.contiguous()
        zeros = unpack(packed, linear.bits, linear.rows).T
    return codes, zeros, scales, parts.get("weight_g_idx")


def _unpack_old_3_bits(
    words: Int32[Tensor, "rows words"], bits: int, length: int
) -> UInt8[Tensor, "rows {length}"]:
    """Return 3-bit codes of which a word has ten, the first in its lowest bits."""
    shifts = torch.arange(OLD_CODES_PER_WORD, dtype=torch.int32) * bits
    codes = (words[:, :, None] >> shifts) & (2**bits - 1)
    return codes.flatten(1)[:, :length].to(torch.uint8).contiguous()


def _order(linear: PackedLinear, g_idx: Int32[Tensor, " in"]) -> Int32[Tensor, " in"] | None:
    """Return the group of each column; None where columns of a group follow each other."""
    width = linear.group_size or linear.columns
    plain = torch.arange(linear.columns, dtype=torch.int32) // width
    if torch.equal(g_idx, plain) or linear.group_size is None:
        return None
    groups = linear.columns // width
    in_range = bool((g_idx >= 0).all() and (g_idx < groups).all())
    if not in_range or not (torch.bincount(g_idx, minlength=groups) == width).all():
        raise _odd(
            linear, f"a g_idx with {width} columns for each of {groups} groups", "it has not"
        )
    return g_idx.contiguous()


def _odd(linear: PackedLinear, required: str, found: str) -> InputError:
    file = next(iter(linear.parts.values())).file
    return InputError(
        f"must hold {required}",
        key="base",
        found=f"{linear.name} of {file}: {found}",
        remedy="fetch or save the export again",
    )
