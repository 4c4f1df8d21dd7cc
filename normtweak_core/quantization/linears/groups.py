"""Linears of a block that read one tensor, and what both streams tell of them.

They are solved together: one Hessian, and one cross statistic of what their input, or the sum that
their output goes into, has come to miss.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.activations.smoothing import Smoothed
from normtweak_core.distributed.ranks import ALONE, Ranks
from normtweak_core.distributed.tree import TreeSum
from normtweak_core.experts.stacked import mixture_of
from normtweak_core.forecast.memory import solving_bytes
from normtweak_core.memory import available_memory
from normtweak_core.model.structure import find_linears, linear_weight
from normtweak_core.quantization.config import PropagationConfig
from normtweak_core.quantization.hessian import InputStatistics
from normtweak_core.quantization.linears.inputs import RunBlock, linear_groups
from normtweak_core.quantization.linears.passes import Stop
from normtweak_core.quantization.linears.residual import Residual, residuals
from normtweak_core.quantization.streams import Streams, micro_batches

# Share of the memory that is free, beside what solving takes, for micro-batches that wait.
SUSPENDED_SHARE = 0.4
UNCORRECTED = PropagationConfig(alpha=0.0)


@dataclass(frozen=True)
class LinearGroup:
    """Float linears that read the same tensor, in the order in which they are called."""

    modules: dict[str, nn.Module]  # by name in the block
    mixture: str | None = None  # name of the mixture of experts of which they are all linears
    divisor: Float[Tensor, " in"] | None = None  # where smoothed: of what the float block reads
    smooths: bool = False  # whether the block is smoothed, so that outputs are others as well
    residual: Residual | None = None  # what the output is added to, where its error is corrected
    share: float = 0.0  # of that error

    @property
    def first(self) -> str:
        """Name of the one that is called first."""
        return next(iter(self.modules))

    @property
    def stop(self) -> Stop:
        """Where the quantized stream waits for these linears."""
        return Stop(self.mixture or self.first, residual=self.residual)

    @property
    def wanted_stop(self) -> Stop:
        """Where the float stream holds what they shall bring about."""
        return Stop(self.mixture or self.first, self.by_outputs, self.residual)

    @property
    def weights(self) -> list[Float[Tensor, "out in"]]:
        """The float weights, in float32."""
        return [linear_weight(module).float() for module in self.modules.values()]

    @property
    def by_outputs(self) -> bool:
        """Whether the float outputs tell the cross statistic with less work than the inputs.

        Only in float32: of rounded outputs, their rounding would be taken for error.
        """
        weight = linear_weight(self.modules[self.first])
        narrow = len(self.modules) == 1 and 2 * weight.shape[0] <= weight.shape[1]
        return narrow and weight.dtype == torch.float32 and not self.smooths

    def statistics(
        self,
        inputs: Iterator[Tensor],
        wanted: Iterator[Tensor] | None,
        leaves: list[int],
        ranks: Ranks = ALONE,
    ) -> tuple[Float[Tensor, "in in"] | None, Float[Tensor, "out in"] | None]:
        """Return H, and W C where the float stream is given; None where another process has them.

        Args:
            inputs: What the quantized stream holds at `stop`, by micro-batch.
            wanted: What the float stream holds at `wanted_stop`.
            leaves: Of the tree of sums, which each of these micro-batches is in.
            ranks: Who else gathers.
        """
        weight = linear_weight(self.modules[self.first])
        sums = TreeSum(lambda: InputStatistics(weight.shape[1], weight.device), ranks)
        for leaf, hidden in zip(leaves, inputs, strict=True):
            hidden, ours = hidden if self.residual else (hidden, None)
            into = sums.of(leaf)
            x = into.add(hidden)
            if wanted is not None:
                theirs, rest = next(wanted) if self.residual else (next(wanted), None)
                error = self._error(theirs, x)
                if self.residual:
                    error += self.share * (rest.float() - ours.float()).flatten(0, -2)
                into.add_error(error, x)
        statistics = sums.total(InputStatistics.made_of)
        if statistics is None:
            return None, None
        if wanted is None:
            return statistics.hessian(), None
        cross, of_outputs = statistics.cross(), self.by_outputs or self.residual
        return statistics.hessian(), cross if of_outputs else torch.cat(self.weights) @ cross

    def _error(
        self, theirs: Float[Tensor, "*tokens given"], x: Float[Tensor, "tokens in"]
    ) -> Float[Tensor, "tokens error"]:
        """Return by how much the inputs of both streams differ, or the outputs of the float layer.

        Args:
            theirs: What the float stream holds at `wanted_stop`.
            x: The inputs of the quantized stream, in float32.
        """
        theirs = theirs.flatten(0, -2).float()
        if self.by_outputs:
            # Not called as a module: the passes that wait at this linear must not notice.
            return theirs - self.modules[self.first].forward(x)
        error = (theirs if self.divisor is None else theirs / self.divisor) - x
        return error @ self.weights[0].T if self.residual else error


def linear_groups_of(
    block: nn.Module,
    run: RunBlock,
    hidden: Tensor,
    smooth: Smoothed | None = None,
    propagation: PropagationConfig = UNCORRECTED,
) -> list[LinearGroup]:
    """Return the groups of a block, or of it smoothed, in the order in which they are called.

    Args:
        block: Float block.
        run: Runs it on a micro-batch of windows.
        hidden: A window of what it reads.
        smooth: The block smoothed, where it is.
        propagation: What is corrected.
    """
    linears = find_linears(block if smooth is None else smooth.block)
    grouped, rests = linear_groups(block, run, hidden), {}
    if propagation.alpha > 0 and propagation.residual > 0:
        alone = [names[0] for names in grouped if len(names) == 1]
        rests = residuals(block, run, hidden, alone)
    return [
        LinearGroup(
            {name: linears[name] for name in names},
            mixture_of(block, names[0]),
            None if smooth is None else smooth.divisors.get(names[0]),
            smooth is not None,
            rests.get(names[0]),
            propagation.residual,
        )
        for names in grouped
    ]


def held_micro_batches(
    groups: list[LinearGroup], streams: Streams, propagated: bool, ranks: Ranks = ALONE
) -> int:
    """Return how many micro-batches may wait in memory, in the share of it that is theirs.

    Processes share the memory of the machine; a GPU is of one alone.

    Args:
        groups: Where they wait.
        streams: Whose windows they are.
        propagated: Whether what is seen at each stop is noted beside.
        ranks: Who shares the memory.
    """
    hidden, before, floats, noted = streams.x_q.shape[2], 0, 0, 0
    sizes: list[tuple[int, int]] = []
    for group in groups:
        weights = [linear_weight(module) for module in group.modules.values()]
        rows, columns = sum(len(weight) for weight in weights), weights[0].shape[1]
        if group.mixture is not None:  # their own intermediates wait for nothing
            rows = columns
        # The residual, the input of the part of the block that is at work, what the linears before
        # gave it, and what these read.
        rest = hidden if group.residual else 0
        floats, before = max(floats, 2 * hidden + before + columns + rest), rows
        sizes.append((rows, columns))
        noted += (rows if group.by_outputs else columns) + rest
    size = micro_batches(streams.x_q)[0].stop * streams.x_q.shape[1]
    needed = size * (floats + propagated * noted) * streams.x_q.element_size()
    device = linear_weight(next(iter(groups[0].modules.values()))).device
    sharing = ranks.size if device.type == "cpu" else 1
    free = available_memory(str(device)) - solving_bytes(sizes)
    return max(0, int(SUSPENDED_SHARE * free // needed // sharing))
