"""How far a model moves where one group of linears gets a width and all others the narrowest.

The cost of a width is measured where it counts: at the logits, as the divergence KL(float ||
quantized) on windows that are held out of the Hessians. All else is at the narrowest width and not
float, since errors do not add up: what matters is how much of the damage a wider group takes back
(docs/log.md has both). One block is in memory at a time, and of the held-out windows what each
trial has made of them.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from normtweak_core.evaluate.divergence import compare_each
from normtweak_core.evaluate.predictions import Walked, batches, walked
from normtweak_core.model.streaming import KEPT_BYTES
from normtweak_core.model.structure import find_linears, set_linear_weight
from normtweak_core.quantization.streams import num_training_windows
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.widths.budget import MEASURED_TOKENS
from normtweak_core.widths.report import GroupCost
from normtweak_core.widths.trial import GroupTrial

States = list[Tensor]  # of each batch of the held-out windows, on the CPU


class Measuring:
    """The model at its narrowest on its walk over the held-out windows, measured block by block."""

    def __init__(self, walk: BlockWalk, trials: Callable[[int], list[GroupTrial]]):
        """Walk the held-out windows to their end, at their narrowest and in float.

        Args:
            walk: Of the float model over the calibration windows.
            trials: Returns the groups of a block at all widths.

        Raises:
            NonFiniteError: Logits are not finite.
        """
        self._walk, self._trials = walk, trials
        self._kept: dict[int, nn.Module] = {}
        first = num_training_windows(len(walk.input_ids))
        count = max(1, MEASURED_TOKENS // walk.input_ids.shape[1])
        self._windows = walk.input_ids[first : first + count]
        self._float = walked(walk.model, self._windows)
        walk.model.release()
        self._at, self._states = 0, self._start()
        (self._narrowest,) = self._divergence(0, [self._start()])

    @torch.no_grad()
    def block(self, index: int) -> list[GroupCost]:
        """Return what each group of a block costs at each width.

        Args:
            index: Of the block, behind those that were asked for before.

        Raises:
            NonFiniteError: Activations or logits are not finite.
        """
        while self._at < index:  # blocks that are there already
            self._states = self._behind(self._narrow(self._at), self._at, self._states)
            self._at += 1
        self._at += 1
        groups, narrow, tried = self._trials(index), self._narrow(index), []
        for group in groups:
            narrowest, *wider = group
            for width in wider:
                _put(narrow, group[width])
                tried.append(self._behind(narrow, index, self._states))
            _put(narrow, group[narrowest])
        self._states = self._behind(narrow, index, self._states)
        found = iter(self._divergence(index + 1, tried))
        costs = []
        for group in groups:
            narrowest, *wider = group
            shapes = {name: tuple(one.codes.shape) for name, one in group[narrowest].items()}
            measured = {narrowest: self._narrowest} | {width: next(found) for width in wider}
            costs.append(GroupCost(block=index, linears=shapes, divergence=measured))
        return costs

    def _start(self) -> States:
        embedded = (self._walk.model.embed(ids)[0] for ids in batches(self._windows, None))
        return [hidden.cpu() for hidden in embedded]

    @torch.no_grad()
    def _behind(self, block: nn.Module, index: int, states: States) -> States:
        run = self._walk.runner(index)
        return [run(block, hidden).cpu() for hidden in states]

    def _divergence(self, index: int, tried: list[States]) -> list[float]:
        """Return nats per token of trials whose states in front of a block are given."""
        model = self._walk.model
        for later in range(index, model.num_blocks):
            block = self._narrow(later)
            tried = [self._behind(block, later, states) for states in tried]
        trials = [Walked(model, states) for states in tried]
        return [one.kl.mean for one in compare_each(trials, self._float, self._windows)]

    def _narrow(self, index: int) -> nn.Module:
        """Return a block at its narrowest, from memory where it was kept."""
        if index in self._kept:
            return self._kept[index]
        block = self._walk.load(index)
        for group in self._trials(index):
            _put(block, next(iter(group.values())))
        held = (*self._kept.values(), block)
        if sum(one.nbytes for kept in held for one in kept.parameters()) <= KEPT_BYTES:
            self._kept[index] = block
        return block


def _put(block: nn.Module, layers: Mapping[str, QuantizedWeight]) -> None:
    linears = find_linears(block)
    for name, weight in layers.items():
        set_linear_weight(linears[name], weight.dequantize())
