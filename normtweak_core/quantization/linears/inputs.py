"""Which linears of a block read the same tensor, and in what order.

Found by running the block, never from a table of families: linears called with the very same
tensor form one group, and are solved together in one factorization.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from normtweak_core.experts.stacked import expert_linears, find_mixtures
from normtweak_core.model.structure import find_linears

# Runs a block on a micro-batch of hidden states with that block's own masks and rotary tables.
RunBlock = Callable[[nn.Module, Tensor], Tensor]


@torch.no_grad()
def linear_groups(block: nn.Module, run: RunBlock, hidden: Tensor) -> list[list[str]]:
    """Return the names of the linears that share an input, in the order they are called.

    A linear the block never calls is in no group; the caller reports it as left in float. All
    linears of a mixture of experts are one group: which of them run depends on the tokens.
    """
    groups: list[tuple[Tensor, list[str]]] = []

    def note(name: str, inputs: Tensor) -> None:
        for seen, names in groups:
            if seen is inputs:
                names.append(name)
                return
        groups.append((inputs, [name]))

    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
        for name, module in find_linears(block).items()
    ]
    handles += [
        experts.register_forward_pre_hook(
            lambda *_, name=name, experts=experts: groups.append(
                (torch.empty(0), list(expert_linears(name, experts)))
            )
        )
        for name, experts in find_mixtures(block).items()
    ]
    try:
        run(block, hidden)
    finally:
        for handle in handles:
            handle.remove()
    return [names for _, names in groups]
