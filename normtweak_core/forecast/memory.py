"""Bytes that parts of a run hold at their peak, from sizes alone; no torch."""

from collections.abc import Iterable

SUMS = 4
FLOAT = 4  # bytes: all of this is float32, but for factors, which are float64


def solving_bytes(groups: Iterable[tuple[int, int]], sums: int = SUMS) -> int:
    """Return what solving the linears of a block takes beside the block.

    Args:
        groups: Rows and width of each group of linears that read one tensor.
        sums: Of micro-batches: their statistics are added in a tree, four of them at once.
    """
    sums = min(sums, SUMS)
    return FLOAT * max((_solved(rows, width, sums) for rows, width in groups), default=0)


def _solved(rows: int, width: int, sums: int) -> int:
    """Return the numbers of float32 while one group is solved, in turn.

    The correction: H, its factor, and in float64 what it is solved for and the solution. The
    inverse of H: H, the factor, and what is made of it twice. The column loop: weights as they are,
    corrected, masked and worked on, and the codes of this range, of the best and of both.
    """
    H, W = width * width, rows * width
    gathered = sums * (H + min(H, W))
    return max(gathered, 3 * H + 6 * W, 5 * H + 4 * W, 3 * H + 8 * W)
