"""Sums in a fixed binary tree, the same additions whatever the number of processes.

Addition of floats is not associative, so that an all-reduce gives other bits for other numbers of
processes. Here the micro-batches are cut into eight leaves, contiguous and as even as can be. The
sum of a leaf is taken in order, and neighbours are added in pairs, then pairs of pairs. A process
owns whole leaves, adds what lies within them, and hands the rest on to the first one. One process
by itself keeps at most three sums beside the one it adds to.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normtweak_core.distributed.config import MOST
from normtweak_core.distributed.ranks import Ranks

LEAVES = MOST


def leaves_of(count: int) -> list[int]:
    """Return the leaf of each of some micro-batches in order; with few, some leaves are empty."""
    return [leaf for leaf in range(LEAVES) for _ in _within(count, leaf)]


def own_micro_batches(count: int, ranks: Ranks) -> range:
    """Return which of some micro-batches are in leaves of this process."""
    own = ranks.share(LEAVES)
    return range(count * own.start // LEAVES, count * own.stop // LEAVES)


def _within(count: int, leaf: int) -> range:
    return range(count * leaf // LEAVES, count * (leaf + 1) // LEAVES)


class TreeSum:
    """Takes in micro-batches in order, each into the sum of its leaf.

    A sum is whatever adds another one to itself by ``merge`` and can be sent as its ``tensors``.
    """

    def __init__(self, new: Callable[[], Any], ranks: Ranks):
        """Start empty.

        Args:
            new: Returns an empty sum.
            ranks: Whose leaves come here.
        """
        self._new, self._ranks, self._start = new, ranks, ranks.share(LEAVES).start
        self._nodes: list[tuple[int, Any]] = []  # by the first leaf of each, from left to right

    def of(self, leaf: int) -> Any:
        """Return the sum of a leaf, to add a micro-batch to; leaves come in order."""
        if not self._nodes or self._nodes[-1][0] != leaf:
            self._merge(leaf)
            self._nodes.append((leaf, self._new()))
        return self._nodes[-1][1]

    def total(self, made_of: Callable[[list[Tensor]], Any]) -> Any:
        """Return the sum of all processes' leaves to the first one, None to the others.

        Args:
            made_of: Makes a sum again of its tensors.
        """
        ranks = self._ranks
        self._merge(ranks.share(LEAVES).stop)
        if not ranks.is_first:
            leaves = torch.tensor([leaf for leaf, _ in self._nodes])
            ranks.send([leaves, *(one for _, node in self._nodes for one in node.tensors())])
            return None
        for rank in range(1, ranks.size):
            # A share that is no whole branch of the tree comes in several.
            leaves, *sent = ranks.receive(rank)
            each = len(sent) // max(1, len(leaves))
            for place, leaf in enumerate(leaves.tolist()):
                self._merge(leaf)
                self._nodes.append((leaf, made_of(sent[place * each : (place + 1) * each])))
            self._merge(ranks.share(LEAVES, rank).stop)
        return self._nodes[0][1]

    def _merge(self, until: int) -> None:
        """Add up neighbours whose branch lies within what has come here, up to a leaf."""
        while len(self._nodes) > 1:
            (left, one), (right, other) = self._nodes[-2:]
            size = 1 << (left ^ right).bit_length()  # leaves of the branch that holds both
            start = left // size * size
            if start < self._start or start + size > until:
                return
            self._nodes.pop()
            one.merge(other)
