"""Repetition in windows of token ids, as statistics of their n-grams."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class NgramStatistics:
    """How often n-grams of one order repeat.

    Attributes:
        distinct_in_window: Distinct n-grams over all n-grams, in a window, mean over windows.
        distinct_in_set: The same over the whole set; falls as a set grows.
        covered: Windows more than half of which is covered by one n-gram.
    """

    distinct_in_window: float
    distinct_in_set: float
    covered: Bool[Tensor, " samples"]


def ngram_statistics(
    input_ids: Int64[Tensor, "samples length"], orders: tuple[int, ...] = (1, 2, 3, 4)
) -> dict[int, NgramStatistics]:
    """Return the statistics of each order; n-grams do not reach across windows.

    Args:
        input_ids: Windows at least as long as the highest order.
        orders: Lengths of n-grams.
    """
    statistics = {}
    vocabulary, ids = torch.unique(input_ids, return_inverse=True)
    numbers = ids  # number of the n-gram that starts at each position
    for order in range(1, max(orders) + 1):
        if order > 1:
            # An n-gram is a numbered (n-1)-gram and one more token: exact, and small enough.
            pairs = numbers[:, :-1] * len(vocabulary) + ids[:, order - 1 :]
            numbers = torch.unique(pairs, return_inverse=True)[1]
        if order in orders:
            statistics[order] = _statistics(numbers, order)
    return statistics


def _statistics(numbers: Int64[Tensor, "samples grams"], order: int) -> NgramStatistics:
    grams = numbers.shape[1]
    distinct = 1 + (numbers.sort(dim=1).values.diff(dim=1) != 0).sum(dim=1)
    commonest = numbers == numbers.mode(dim=1, keepdim=True).values
    starts = functional.pad(commonest, (order - 1, order - 1))
    covered = torch.stack([starts[:, i : i + grams + order - 1] for i in range(order)]).any(0)
    return NgramStatistics(
        distinct_in_window=(distinct.double() / grams).mean().item(),
        distinct_in_set=(int(numbers.max()) + 1) / numbers.numel(),
        covered=covered.double().mean(dim=1) > 0.5,
    )


def duplicate_windows(input_ids: Int64[Tensor, "samples length"]) -> int:
    """Return how many windows are copies of an earlier one."""
    return len(input_ids) - len({row.numpy().tobytes() for row in input_ids})
