"""Sums in the tree have the same bits whoever takes which share of them."""

import pytest
import torch

from normtweak_core.distributed.ranks import ALONE
from normtweak_core.distributed.tree import LEAVES, TreeSum, leaves_of, own_micro_batches
from normtweak_core.quantization.hessian import InputStatistics
from tests.core.distributed.threads import ThreadRanks, together

WIDTH, TOKENS = 24, 40


def inputs_of(count, seeded):
    x = torch.randn(count, TOKENS, WIDTH, generator=seeded(1)) * 3
    return x, x + 0.1 * torch.randn(x.shape, generator=seeded(2))


def summed(x, wanted, ranks, most=None):
    sums = TreeSum(lambda: InputStatistics(WIDTH, torch.device("cpu")), ranks)
    leaves = leaves_of(len(x))
    for place in own_micro_batches(len(x), ranks):
        sums.of(leaves[place]).add_both(x[place], wanted[place])
        if most is not None:
            most.append(len(sums._nodes))
    return sums.total(InputStatistics.made_of)


@pytest.mark.parametrize("count", [1, 3, 7, 8, 9, 56])
def test_the_sums_are_those_of_one_process_bit_for_bit(count, seeded):
    x, wanted = inputs_of(count, seeded)
    alone = summed(x, wanted, ALONE)
    cross, hessian = alone.cross(), alone.hessian()
    for size in (2, 3, 4, 5, 8):
        shared = together(size, lambda ranks: summed(x, wanted, ranks))
        assert torch.equal(shared.cross(), cross)
        assert torch.equal(shared.hessian(), hessian)
        assert shared.num_tokens == count * TOKENS


def test_the_sums_are_the_statistics_of_all_tokens(seeded):
    x, wanted = inputs_of(13, seeded)
    found = summed(x, wanted, ALONE)
    flat, error = x.flatten(0, 1).double(), (wanted - x).flatten(0, 1).double()
    for ours, exact in ((found.hessian(), flat.T @ flat), (found.cross(), error.T @ flat)):
        torch.testing.assert_close(ours.double(), 2 * exact / len(flat), rtol=1e-5, atol=1e-5)


def test_another_order_has_other_bits(seeded):
    x, wanted = inputs_of(56, seeded)
    in_order = InputStatistics(WIDTH, torch.device("cpu"))
    for ours, theirs in zip(x, wanted, strict=True):
        in_order.add_both(ours, theirs)
    assert not torch.equal(in_order.hessian(), summed(x, wanted, ALONE).hessian())


def test_the_pairs_are_neighbours_then_pairs_of_pairs():
    class Text:
        def __init__(self, text=""):
            self.text = text

        def merge(self, other):
            self.text = f"({self.text}{other.text})"

    def told(count):
        sums = TreeSum(Text, ALONE)
        for place, leaf in enumerate(leaves_of(count)):
            sums.of(leaf).text += "abcdefghijkl"[place]
        return sums.total(Text).text

    assert leaves_of(12) == [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 7]
    assert leaves_of(3) == [2, 5, 7]
    assert told(8) == "(((ab)(cd))((ef)(gh)))"
    assert told(12) == "(((abc)(def))((ghi)(jkl)))"  # bc: one leaf, in order
    assert told(3) == "(a(bc))"


def test_one_process_keeps_at_most_three_sums_beside_the_one_it_adds_to(seeded):
    most = []
    summed(*inputs_of(24, seeded), ALONE, most)
    assert max(most) == 4


def test_every_micro_batch_is_someones():
    for count in (0, 1, 5, 8, 57):
        for size in range(1, LEAVES + 1):
            shares = [own_micro_batches(count, ThreadRanks(r, size, {})) for r in range(size)]
            assert [place for share in shares for place in share] == list(range(count))
