"""Where channels of a block can be divided and what reads them multiplied, exactly.

Found by running the block, never from a table of families: a norm, or a linear whose rows reach the
columns of a later one unmixed (v and o, up and down), is taken where factors that are powers of two
leave every bit of the block's output as it was.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from normtweak_core.experts.stacked import mixture_of
from normtweak_core.model.structure import (
    find_linears,
    find_norms,
    linear_weight,
    set_linear_weight,
)
from normtweak_core.quantization.linears.inputs import RunBlock, linear_groups

# Of the largest output, where a gain of 1 + w cannot be multiplied exactly.
TOLERANCE = 1e-2
SEED = 0  # of the powers of two


@dataclass(frozen=True)
class Place:
    """A norm or linear, and the linears that read what it gives and nothing else."""

    source: str  # name in the block
    linears: tuple[str, ...]
    channels: Int64[Tensor, " in"]  # which channel of the source each of their columns reads

    def divide(self, block: nn.Module, factors: Float[Tensor, " channels"]) -> None:
        """Divide the channels of the source by factors, and multiply them in what reads it."""
        source, linears = block.get_submodule(self.source), find_linears(block)
        plus_one = _adds_one(block, self.source)
        with torch.no_grad():
            for name, parameter in source.named_parameters(recurse=False):
                over = factors[:, None] if parameter.dim() == 2 else factors
                shift = float(plus_one and name == "weight")
                parameter.copy_((parameter.float() + shift) / over - shift)
        for name in self.linears:
            weight = linear_weight(linears[name]).float()
            set_linear_weight(linears[name], weight * factors[self.channels])


@torch.no_grad()
def smoothing_places(block: nn.Module, run: RunBlock, hidden: Tensor) -> list[Place]:
    """Return the places of a block, in the order in which it comes to them.

    Args:
        block: Float block; its linears are called once each.
        run: Runs it on a micro-batch of windows.
        hidden: A window of what it reads.
    """
    given, places, earlier = _norm_outputs(block, run, hidden), [], list[str]()
    for names in linear_groups(block, run, hidden):
        if mixture_of(block, names[0]) is not None:
            continue
        found = _behind_norm(block, names, given)
        if found is None and len(names) == 1:
            found = next(_behind_linears(block, run, hidden, earlier, names[0]), None)
        if found is not None and _is_exact(block, run, hidden, found):
            places.append(found)
        earlier += names
    return places


def _norm_outputs(block: nn.Module, run: RunBlock, hidden: Tensor) -> dict[str, str]:
    """Return the norm whose very output a linear reads, by linear."""
    made: list[tuple[str, Tensor]] = []
    found: dict[str, str] = {}

    def look(name: str, x: Tensor) -> None:
        for norm, output in made:
            if output is x:
                found[name] = norm

    with ExitStack() as hooks:
        for name, norm in find_norms(block).items():
            if not norm.per_head:
                hook = norm.module.register_forward_hook(
                    lambda _, args, output, name=name: made.append((name, output))
                )
                hooks.callback(hook.remove)
        for name, linear in find_linears(block).items():
            hook = linear.register_forward_pre_hook(lambda _, args, name=name: look(name, args[0]))
            hooks.callback(hook.remove)
        run(block, hidden)
    return found


def _behind_norm(block: nn.Module, names: list[str], given: dict[str, str]) -> Place | None:
    if names[0] not in given:
        return None
    width = linear_weight(find_linears(block)[names[0]]).shape[1]
    return Place(given[names[0]], tuple(names), torch.arange(width))


def _behind_linears(
    block: nn.Module, run: RunBlock, hidden: Tensor, earlier: list[str], name: str
) -> Iterator[Place]:
    """Yield the places in which earlier linears, the last first, reach the columns of one."""
    for source in reversed(earlier):
        channels = _rows_read(block, run, hidden, source, name)
        if channels is not None:
            yield Place(source, (name,), channels)


def _rows_read(
    block: nn.Module, run: RunBlock, hidden: Tensor, source: str, name: str
) -> Int64[Tensor, " in"] | None:
    """Return which row of a linear each column of another reads; None: not one row each.

    All rows are doubled, then those whose number has a bit: a column doubles where its row does.
    """
    trial = copy.deepcopy(block)
    rows = linear_weight(find_linears(block)[source]).shape[0]
    numbers = torch.arange(rows)

    def doubled(chosen: Tensor) -> Tensor | None:
        """Return for each column whether it has doubled; None where one has done neither."""
        factors = torch.where(chosen, 2.0, 1.0)
        part = trial.get_submodule(source)
        for parameter, own in zip(
            part.parameters(recurse=False),
            block.get_submodule(source).parameters(recurse=False),
            strict=True,
        ):
            parameter.copy_(own * (factors[:, None] if own.dim() == 2 else factors).to(own))
        found = _input_of(trial, run, hidden, name)
        more, same = ((found == times * wanted).all(dim=0) for times in (2, 1))
        return more if bool((more | same).all()) else None

    wanted = _input_of(block, run, hidden, name)
    everything = doubled(torch.ones(rows, dtype=torch.bool))
    if everything is None or not everything.all():
        return None
    channels = torch.zeros(wanted.shape[1], dtype=torch.int64)
    for bit in range((rows - 1).bit_length()):
        found = doubled((numbers >> bit) % 2 == 1)
        if found is None:
            return None
        # A column of zeros has doubled as well as not.
        channels += (found & wanted.any(dim=0)).long().cpu() << bit
    return channels


def _input_of(block: nn.Module, run: RunBlock, hidden: Tensor, name: str) -> Tensor:
    seen: list[Tensor] = []
    hook = block.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].flatten(0, -2).clone())
    )
    try:
        run(block, hidden)
    finally:
        hook.remove()
    return seen[0]


def _is_exact(block: nn.Module, run: RunBlock, hidden: Tensor, place: Place) -> bool:
    """Say whether powers of two change nothing that the block gives."""
    trial = copy.deepcopy(block)
    count = next(block.get_submodule(place.source).parameters(recurse=False)).shape[0]
    random = torch.Generator().manual_seed(SEED)
    powers = torch.randint(-2, 3, (count,), generator=random)
    place.divide(trial, torch.exp2(powers.float()).to(hidden.device))
    found, wanted = run(trial, hidden), run(block, hidden)
    if not _adds_one(block, place.source):
        return torch.equal(found, wanted)
    return bool((found - wanted).abs().max() <= TOLERANCE * wanted.abs().max())


def _adds_one(block: nn.Module, source: str) -> bool:
    norm = find_norms(block).get(source)
    return norm is not None and norm.kind.endswith("plus_one")
