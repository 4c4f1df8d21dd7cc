"""Choose a width for each group of linears: least cost within a budget of bits, exactly.

The multiple-choice knapsack: of each group one width, the sum of their costs least, that of their
bits at most the budget. Groups are taken one after the other; of what can be chosen so far only
those states are kept that no other one equals in bits and undercuts in cost (Nemhauser and Ullmann
1969, Management Science 15(9)). Blocks are alike, so that few sums of bits differ.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normtweak_core.errors import InputError
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.widths.budget import check_budget, stored_bits
from normtweak_core.widths.report import Allotment, AllottedGroup, GroupCost


@dataclass(frozen=True)
class Choice:
    """What one width of one group takes and costs."""

    bits: int  # as stored
    cost: float


def allot(
    costs: Sequence[GroupCost], config: QuantizationConfig, form: str, dtype: str
) -> Allotment:
    """Return the widths that cost least within the budget of a recipe.

    Args:
        costs: Of all groups of the model.
        config: Widths, budget and grid.
        form: compressed-tensors or gptq, which decides what a width takes.
        dtype: The export dtype, which does so too.

    Raises:
        InputError: The average is outside what the narrowest and the widest choice truly cost.
    """
    shapes = [shape for one in costs for shape in one.linears.values()]
    check_budget(config, shapes, form, dtype)
    taken = [
        {
            width: stored_bits(one.linears.values(), width, config, form, dtype)
            for width in config.widths
        }
        for one in costs
    ]
    average, weights = config.bits.average, sum(rows * columns for rows, columns in shapes)
    choices = [
        {width: Choice(bits[width], one.divergence[width]) for width in config.widths}
        for one, bits in zip(costs, taken, strict=True)
    ]
    widths = allotted(choices, math.floor(average * weights))
    groups = [
        AllottedGroup(**one.model_dump(), stored_bits=bits, width=width)
        for one, bits, width in zip(costs, taken, widths, strict=True)
    ]
    return Allotment(asked=average, groups=groups)


def allotted(groups: Sequence[Mapping[int, Choice]], budget: int) -> list[int]:
    """Return the width of each group: of all within the budget those of least cost in sum.

    Of equal costs the fewest bits.

    Args:
        groups: Choices by width.
        budget: Bits of all groups together.

    Raises:
        InputError: Not even the narrowest widths are within the budget.
    """
    least = [min(choice.bits for choice in group.values()) for group in groups]
    # What may be taken by the groups so far, since those behind them take at least their least.
    free = budget - np.cumsum([0, *least[::-1]])[::-1]
    if free[0] < 0:
        raise InputError(
            f"a budget must hold every group at its narrowest, {sum(least)} bits; found {budget}: "
            "give more bits, or narrower widths to choose from"
        )
    bits, costs = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for group, most in zip(groups, free[1:], strict=True):
        widths = sorted(group)
        tried_bits = np.concatenate([bits + group[width].bits for width in widths])
        tried_costs = np.concatenate([costs + group[width].cost for width in widths])
        order = np.lexsort((tried_costs, tried_bits))
        order = order[tried_bits[order] <= most]
        before = np.minimum.accumulate(tried_costs[order])
        kept = order[np.concatenate([[True], tried_costs[order[1:]] < before[:-1]])]
        steps.append((np.array(widths)[kept // len(bits)], kept % len(bits)))
        bits, costs = tried_bits[kept], tried_costs[kept]
    state, found = len(costs) - 1, []  # the last costs least
    for widths_of, state_before in reversed(steps):
        found.append(int(widths_of[state]))
        state = state_before[state]
    return found[::-1]
