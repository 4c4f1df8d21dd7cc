"""Which of llama.cpp's tensor types hold a grid to the bit, and what they take; no torch.

=====  =======  ====================================  ==========================================
type   weights  value                                 holds
=====  =======  ====================================  ==========================================
Q4_0   32       ``d (q - 8)``, q of 4 bits            4 bits symmetric; 2 and 3 bits
Q5_0   32       ``d (q - 16)``, q of 5 bits           4 bits with zero points
Q8_0   32       ``d q``, q from -128 to 127           8 bits symmetric
Q2_K   256      ``d s q - dmin m``, s, m of 4 bits    2 bits, one scale for all 256
Q3_K   256      ``d s (q - 4)``, s of 6 bits, signed  3 bits symmetric, one scale for all 256
Q4_K   256      ``d s q - dmin m``, s, m of 6 bits    4 bits with zero points, one scale for all
=====  =======  ====================================  ==========================================

``d`` and ``dmin`` are half-precision numbers, so scales must be. In the last three s is one, m the
zero point, and dmin is d. A row that is no whole number of blocks is stored in float32.

Source: llama.cpp ``ggml-quants.c``; the package ``gguf`` takes the same bytes apart.
"""

from dataclasses import dataclass

PLAIN = "F32"
SMALL, LARGE = 32, 256  # weights of a block


@dataclass(frozen=True)
class Container:
    """One tensor type."""

    name: str
    block: int  # weights
    size: int  # bytes of a block

    @property
    def bits_per_weight(self) -> float:
        """What a weight takes."""
        return 8 * self.size / self.block

    def row_bytes(self, columns: int) -> int:
        """Return the bytes of a row of so many weights."""
        return columns // self.block * self.size


CONTAINERS = {
    one.name: one
    for one in (
        Container("Q4_0", SMALL, 18),
        Container("Q5_0", SMALL, 22),
        Container("Q8_0", SMALL, 34),
        Container("Q2_K", LARGE, 84),
        Container("Q3_K", LARGE, 110),
        Container("Q4_K", LARGE, 144),
        Container("TQ2_0", LARGE, 66),
        Container("F32", 1, 4),
        Container("F16", 1, 2),
        Container("BF16", 1, 2),
    )
}


def held_by(bits: int, group_size: int | None, symmetric: bool) -> tuple[str, ...]:
    """Return the types that hold a grid, the smallest first; none where none does.

    Args:
        bits: Of a code.
        group_size: Columns that share a scale; None: the whole row.
        symmetric: Whether all zero points are in the middle.
    """
    large = {(2, True): "Q2_K", (2, False): "Q2_K", (3, True): "Q3_K", (4, False): "Q4_K"}
    small = {(4, False): "Q5_0", (8, True): "Q8_0", (8, False): None}
    kinds = []
    if (bits, symmetric) in large and (group_size is None or group_size % LARGE == 0):
        kinds.append(large[bits, symmetric])
    kind = small.get((bits, symmetric), "Q4_0")
    if kind is not None and (group_size is None or group_size % SMALL == 0):
        kinds.append(kind)
    return tuple(kinds)


def kinds_of(
    bits: int, group_size: int | None, symmetric: bool, inexact: bool = False
) -> tuple[str, ...]:
    """Return `held_by`, or where that is none and an error is allowed, the nearest type."""
    return held_by(bits, group_size, symmetric) or (("Q8_0",) if inexact else ())


def container_of(kinds: tuple[str, ...], columns: int) -> Container:
    """Return the first of some types of whose blocks a row is a whole number, else float32."""
    for kind in kinds:
        if columns % CONTAINERS[kind].block == 0:
            return CONTAINERS[kind]
    return CONTAINERS[PLAIN]
