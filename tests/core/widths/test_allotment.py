"""Widths within a budget: least cost of all there are, and refusals with both numbers."""

import itertools

import pytest
import torch

from normtweak_core.errors import InputError
from normtweak_core.quantization.config import MixedBits, QuantizationConfig
from normtweak_core.widths.allotment import Choice, allot, allotted
from normtweak_core.widths.budget import check_budget, stored_bits
from normtweak_core.widths.report import GroupCost

SHAPES = [(64, 64), (128, 64), (64, 128)]


def mixed(average, choose_from=(2, 3, 4), **grid):
    bits = MixedBits(average=average, choose_from=choose_from)
    return QuantizationConfig(bits=bits, **{"group_size": 32} | grid)


def best_of_all(groups, budget):
    """Try everything."""
    found = []
    for widths in itertools.product(*groups):
        chosen = [group[width] for group, width in zip(groups, widths, strict=True)]
        bits = sum(choice.bits for choice in chosen)
        if bits <= budget:
            found.append((sum(choice.cost for choice in chosen), bits))
    return min(found)


@pytest.mark.parametrize("seed", range(6))
def test_no_other_widths_within_the_budget_cost_less(seed, seeded):
    draw = seeded(seed)
    sizes = torch.randint(1, 40, (6,), generator=draw).tolist()
    costs = torch.randint(0, 30, (6, 3), generator=draw).double().tolist()
    groups = [
        {
            width: Choice(width * size + size % 3, cost)
            for width, cost in zip((2, 3, 8), row, strict=True)
        }
        for size, row in zip(sizes, costs, strict=True)
    ]
    least = sum(group[2].bits for group in groups)
    most = sum(group[8].bits for group in groups)
    for average in (0.0, 0.1, 0.35, 0.6, 1.0):
        budget = least + int(average * (most - least))
        widths = allotted(groups, budget)
        chosen = [group[width] for group, width in zip(groups, widths, strict=True)]
        cost, bits = best_of_all(groups, budget)
        # Of those that cost as little, one of the fewest bits.
        assert (sum(one.cost for one in chosen), sum(one.bits for one in chosen)) == (cost, bits)


def test_of_equal_costs_the_fewest_bits():
    groups = [{2: Choice(20, 1.0), 3: Choice(30, 1.0), 4: Choice(40, 0.5)} for _ in range(3)]
    assert sorted(allotted(groups, 100)) == [2, 4, 4]
    assert allotted(groups, 70) == [2, 2, 2]


def test_hundreds_of_groups_are_solved_exactly_by_their_symmetry():
    # The same choice 300 times: half of the groups can be widened, whichever.
    groups = [{2: Choice(2_000_003, 3.0), 4: Choice(4_000_003, 1.0)} for _ in range(300)]
    widths = allotted(groups, 300 * 3_000_003)
    assert sorted(widths) == [2] * 150 + [4] * 150


def test_a_budget_below_everything_is_refused():
    groups = [{2: Choice(20, 1.0), 3: Choice(30, 0.5)}]
    with pytest.raises(InputError, match=r"its narrowest, 20 bits; found 19: give more bits"):
        allotted(groups, 19)


@pytest.mark.parametrize(
    ("average", "told"),
    [
        (2.0, r"bits.average must be from 2\.7709 to 4\.7708, what 2 and 4 bits truly cost here "
              r"with scales and zero points; found 2: raise it, choose from narrower widths, or "
              r"set a larger group_size"),
        (5.0, r"must be from 2\.7709 to 4\.7708, .*; found 5: set bits to 4"),
    ],
)  # fmt: skip
def test_an_average_outside_what_widths_truly_cost_is_told_both_numbers(average, told):
    with pytest.raises(InputError, match=told):
        check_budget(mixed(average), [(64, 64), (128, 64), (64, 128), (64, 64)], "auto")


def test_one_width_has_no_budget():
    check_budget(QuantizationConfig(bits=2), [(64, 64)], "auto")


def test_what_is_stored_is_counted_whole():
    # Codes of 3 bits, a float16 scale and an int8 zero for 32 of them, the shape in two int64.
    assert stored_bits([(64, 64)], 3, mixed(3), "auto", "float16") == 64 * (64 * 3 + 2 * 24) + 128
    symmetric = mixed(3, symmetric=True)
    assert stored_bits([(64, 64)], 3, symmetric, "auto", "float32") == 64 * (64 * 3 + 2 * 32) + 128


def test_an_allotment_keeps_the_average_and_tells_what_it_saves():
    costs = [
        GroupCost(block=i // 3, linears={f"l{i % 3}": SHAPES[i % 3]}, divergence={2: 5.0, 3: 5 - i,
                  4: 4.5 - i})
        for i in range(6)
    ]  # fmt: skip
    found = allot(costs, mixed(3.2), "auto", "float16")
    assert found.average <= 3.2
    weights = 2 * sum(rows * columns for rows, columns in SHAPES)
    taken = sum(one.stored_bits[one.width] for one in found.groups)
    assert found.average == taken / weights
    assert found.at_narrowest == 5.0
    saved = sum(5.0 - one.divergence[one.width] for one in found.groups)
    assert found.saved == pytest.approx(saved)
    assert found.of_block(1) == {f"l{k}": found.groups[3 + k].width for k in range(3)}
    assert sum(found.counts.values()) == 6
    assert found.in_words().startswith(f"{found.average:.4f} bits per weight of 3.2 allowed: ")
