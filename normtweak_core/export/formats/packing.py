"""Codes of 2, 3, 4 or 8 bits in 32-bit words: one little-endian bit stream per row.

Code ``i`` of a row occupies the bits ``i * bits`` to ``i * bits + bits - 1`` of the stream;
stream bit ``j`` is bit ``j % 32`` of word ``j // 32``, least significant first. 32 codes fill
``bits`` words exactly; a shorter last run is padded with zero bits to a whole word.

Three bits, the only width whose codes straddle words (word 0 on the right, bit 31 leftmost)::

    word 2                   word 1                            word 0
    | c31 | .. | c22 | c21 : c21 | c20 | .. | c11 | c10 : c10 | c9 | .. | c1 | c0 |
      3 bits           2      1                     1      2      3 bits

For the other widths a word is simply ``32 / bits`` codes, the first in the lowest bits.

Source: compressed-tensors 0.20 ``pack_to_int32`` and the classic GPTQ layout (for 3 bits its
10-1-10-1-10 scheme) are both this stream; they differ in the dimension they run along.
"""

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor
from torch.nn.functional import pad

from normtweak_core.export.formats.stored_bytes import WORD, num_words

WIDTHS = (2, 3, 4, 8)


def pack_rows(codes: UInt8[Tensor, "rows length"], bits: int) -> Int32[Tensor, "rows words"]:
    """Return each row's codes as a bit stream in int32 words.

    Raises:
        ValueError: ``bits`` is not 2, 3, 4 or 8, or a code does not fit in it.

    """
    _check_width(bits)
    if codes.numel() and int(codes.max()) >> bits:
        raise ValueError(f"codes of {bits} bits must be below {2**bits}; got {int(codes.max())}")
    rows, length = codes.shape
    runs = pad(codes, (0, -length % WORD)).reshape(rows, -1, WORD)
    words = codes.new_zeros((rows, runs.shape[1], bits), dtype=torch.int32)
    for i in range(WORD):
        word, offset = divmod(i * bits, WORD)
        code = runs[:, :, i].to(torch.int32)
        words[:, :, word] |= code << offset  # bits beyond 31 fall off
        if offset + bits > WORD:
            words[:, :, word + 1] |= code >> (WORD - offset)
    return words.reshape(rows, -1)[:, : num_words(length, bits)].contiguous()


def unpack_rows(
    words: Int32[Tensor, "rows words"], bits: int, length: int
) -> UInt8[Tensor, "rows {length}"]:
    """Return the first ``length`` codes of each row's bit stream.

    Raises:
        ValueError: ``bits`` is not 2, 3, 4 or 8, or the words do not hold exactly that many codes.

    """
    _check_width(bits)
    rows, found = words.shape
    if found != num_words(length, bits):
        raise ValueError(
            f"{length} codes of {bits} bits need {num_words(length, bits)} words; found {found}"
        )
    runs = pad(words, (0, -found % bits)).reshape(rows, -1, bits)
    codes = words.new_empty((rows, runs.shape[1], WORD), dtype=torch.uint8)
    for i in range(WORD):
        word, offset = divmod(i * bits, WORD)
        code = runs[:, :, word] >> offset
        if offset + bits > WORD:
            low = WORD - offset
            # The shift above copied the sign bit; keep the bits that are there.
            code = (code & (2**low - 1)) | (runs[:, :, word + 1] << low)
        codes[:, :, i] = (code & (2**bits - 1)).to(torch.uint8)
    return codes.reshape(rows, -1)[:, :length].contiguous()


def _check_width(bits: int) -> None:
    if bits not in WIDTHS:
        raise ValueError(f"bits must be one of {', '.join(map(str, WIDTHS))}; got {bits}")
