"""Bytes of the tensor types that hold a linear on a grid, as llama.cpp lays them out.

A block is its numbers of half precision and its codes; blocks follow each other along the row. The
codes of a small block lie 16 apart in one byte, those of a large one 32 apart.

Source: llama.cpp ``ggml-common.h`` (layouts) and ``ggml-quants.c`` (order).
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from normtweak_core.export.gguf.containers import CONTAINERS, LARGE, SMALL, Container
from normtweak_core.quantization.weight import QuantizedWeight


class NotHeld(Exception):  # noqa: N818  (control flow, not a failure)
    """Why a type does not hold a linear, as a clause."""


def pack(layer: QuantizedWeight, container: Container) -> NDArray[np.uint8]:
    """Return the bytes of a linear, [out, bytes of a row].

    Raises:
        NotHeld: A scale is no number of half precision, or a level none of the type.
    """
    codes = layer.codes.to(torch.int16).unflatten(1, (-1, container.block))
    scales, zeros = _of_blocks(layer, container.block)
    half = scales.to(torch.float16)
    if not torch.equal(half.to(torch.float32), scales):
        wrong = scales[half.to(torch.float32) != scales][0]
        raise NotHeld(f"scales must be numbers of half precision, and one is {float(wrong):.9g}")
    blocks = _PACKERS[container.name](codes, zeros, half)
    return np.ascontiguousarray(blocks).reshape(len(layer.codes), -1)


def _of_blocks(
    layer: QuantizedWeight, size: int
) -> tuple[Float[Tensor, "out blocks"], Int[Tensor, "out blocks"]]:
    """Return the scale and the zero point of each block."""
    columns = layer.codes.shape[1]
    repeats = (layer.group_size or columns) // size
    return tuple(
        values.repeat_interleave(repeats, dim=1)
        for values in (layer.scales, layer.zeros.to(torch.int16))
    )


def _levels(codes: Tensor, zeros: Tensor, offset: int, bits: int) -> NDArray[np.uint8]:
    """Return codes whose zero is the type's.

    Raises:
        NotHeld: One is outside.
    """
    moved = codes - zeros[..., None] + offset
    low, high = int(moved.min()), int(moved.max())
    if low < 0 or high >= 2**bits:
        raise NotHeld(
            f"levels must be from {-offset} to {2**bits - 1 - offset}, and there are "
            f"{low - offset} and {high - offset}"
        )
    return moved.to(torch.uint8).numpy()


def _bytes_of(half: Float[Tensor, "out blocks"]) -> NDArray[np.uint8]:
    """Return the two bytes of each number, [out, blocks, 2]."""
    return half.contiguous().numpy()[..., None].view(np.uint8)


def _nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the low four bits of 32 codes in 16 bytes."""
    low = codes & 0x0F
    return low[..., :16] | (low[..., 16:] << 4)


def _q4_0(codes: Tensor, zeros: Tensor, d: Tensor) -> NDArray[np.uint8]:
    levels = _levels(codes, zeros, 8, 4)
    return np.concatenate([_bytes_of(d), _nibbles(levels)], axis=-1)


def _q5_0(codes: Tensor, zeros: Tensor, d: Tensor) -> NDArray[np.uint8]:
    levels = _levels(codes, zeros, 16, 5)
    fifth = np.packbits(levels >> 4, axis=-1, bitorder="little")
    return np.concatenate([_bytes_of(d), fifth, _nibbles(levels)], axis=-1)


def _q8_0(codes: Tensor, zeros: Tensor, d: Tensor) -> NDArray[np.uint8]:
    levels = _levels(codes, zeros, 128, 8) - np.uint8(128)  # as signed bytes
    return np.concatenate([_bytes_of(d), levels], axis=-1)


def _q2_k(codes: Tensor, zeros: Tensor, d: Tensor) -> NDArray[np.uint8]:
    # A byte for each 16 weights: scale below, minimum above.
    ones = (1 | (zeros << 4)).to(torch.uint8).numpy()[..., None].repeat(LARGE // 16, axis=-1)
    return np.concatenate([ones, _quarters(codes), _bytes_of(d), _bytes_of(d)], axis=-1)


def _q3_k(codes: Tensor, zeros: Tensor, d: Tensor) -> NDArray[np.uint8]:
    levels = _levels(codes, zeros, 4, 3)
    # The third bit of 32 codes apart, eight to a byte.
    third = np.packbits((levels >> 2).reshape(*levels.shape[:2], 8, 32), axis=-2, bitorder="little")
    # 16 scales of 6 bits, all 33, which is one: low halves in 8 bytes, high quarters in 4.
    ones = np.broadcast_to(np.array([0x11] * 8 + [0xAA] * 4, np.uint8), (*levels.shape[:2], 12))
    parts = [third[..., 0, :], _quarters(torch.from_numpy(levels & 3)), ones, _bytes_of(d)]
    return np.concatenate(parts, axis=-1)


def _q4_k(codes: Tensor, zeros: Tensor, d: Tensor) -> NDArray[np.uint8]:
    # 8 scales and 8 minima of 6 bits; both are below 16, so that the bits above are zero.
    minimum = zeros.to(torch.uint8).numpy()[..., None].repeat(4, axis=-1)
    ones = np.ones_like(minimum)
    scales = np.concatenate([ones, minimum, ones | (minimum << 4)], axis=-1)
    whole = codes.to(torch.uint8).numpy().reshape(*codes.shape[:2], 4, 2, 32)
    halves = (whole[..., 0, :] | (whole[..., 1, :] << 4)).reshape(*codes.shape[:2], -1)
    return np.concatenate([_bytes_of(d), _bytes_of(d), scales, halves], axis=-1)


def _quarters(codes: Tensor) -> NDArray[np.uint8]:
    """Return 256 codes of two bits in 64 bytes: four that lie 32 apart in each."""
    whole = codes.to(torch.uint8).numpy().reshape(*codes.shape[:2], 2, 4, 32)
    packed = whole[..., 0, :] | (whole[..., 1, :] << 2)
    packed = packed | (whole[..., 2, :] << 4) | (whole[..., 3, :] << 6)
    return packed.reshape(*codes.shape[:2], -1)


_PACKERS: dict[str, Callable[[Tensor, Tensor, Tensor], NDArray[np.uint8]]] = {
    "Q4_0": _q4_0,
    "Q5_0": _q5_0,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
}
assert all(CONTAINERS[name].block in (SMALL, LARGE) for name in _PACKERS)
