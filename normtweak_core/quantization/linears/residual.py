"""What the output of a linear is added to, where a block adds it to the stream as it is.

Found by running the block, never from a table of families: the output of one linear after the
other is moved, and where the sum behind it, which a norm reads or the block returns, moves with it
and by as much (or by as many times as much), the rest of that sum is looked for among what norms
and linears have read before.

What both streams hold of the rest differs by the error that the blocks before have left, which a
weight can take a share of upon itself: LoaQ, arXiv 2509.06297. Where we differ: a share, not all of
it, under the ridge of the propagation, and no weighting of rows.
"""

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from greenlet import getcurrent
from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.model.structure import find_linears, find_norms
from normtweak_core.quantization.linears.inputs import RunBlock
from normtweak_core.randomness import generator

SEED = 0  # of what outputs are moved by
# Of the size of a sum, by which a part of it may differ from what it is taken for.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
DIGITS = 3  # of how many times an output is in its sum: processes must find the same


@dataclass(frozen=True)
class Residual:
    """The rest of the sum that the output of a linear goes into, as a pass comes to the linear."""

    source: str  # module of the block that reads what the sum begins with
    earlier: tuple[str, ...]  # linears whose outputs are in the sum by then
    times: float  # that each of these outputs is in it

    def watched(self, block: nn.Module, hooks: ExitStack) -> Callable[[], Tensor | None]:
        """Note the parts in all passes from here on; return what gives the rest of a pass.

        That is the rest over `times`, in units of the linear's output; None where the linear is
        called once more.
        """
        # By the pass: several wait in one block.
        seen: WeakKeyDictionary[Any, dict[str, Tensor]] = WeakKeyDictionary()

        def note(name: str, part: Tensor) -> None:
            # Blocks go on to change what they have read.
            seen.setdefault(getcurrent(), {}).setdefault(name, part.clone())

        def read(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            note("", args[0])

        hooks.callback(block.get_submodule(self.source).register_forward_pre_hook(read).remove)
        for name in self.earlier:
            hook = block.get_submodule(name).register_forward_hook(
                lambda _, args, output, name=name: note(name, output)
            )
            hooks.callback(hook.remove)

        def rest() -> Tensor | None:
            parts = seen.pop(getcurrent(), None)
            if parts is None or len(parts) <= len(self.earlier):
                return None
            begins = parts.pop("")
            return sum((part.view_as(begins) for part in parts.values()), begins / self.times)

        return rest


@torch.no_grad()
def residuals(
    block: nn.Module,
    run: RunBlock,
    hidden: Float[Tensor, "windows seq hidden"],
    linears: Collection[str],
) -> dict[str, Residual]:
    """Return the rest of the sum of each linear that writes to the stream, by name.

    Not there are linears whose output is normalized on its way, and those whose sum begins with
    what nothing has read before.

    Args:
        block: Float block.
        run: Runs it on a micro-batch of windows.
        hidden: A window of what it reads.
        linears: Which of its linears may be one.
    """
    plain, tolerance = _Pass.of(block, run, hidden), TOLERANCES[hidden.dtype]
    by = torch.randn(hidden.shape, generator=generator(SEED, "residuals")).to(hidden)
    by *= plain.sums[-1][1].square().mean().sqrt().to(by.dtype)
    sums: dict[str, tuple[int, float]] = {}
    for name in (one for one in plain.outputs if one in linears):
        place = _sum_of(name, plain, _Pass.of(block, run, hidden, name, by), by, tolerance)
        if place is not None:
            sums[name] = place
    found = {}
    for name, (index, times) in sums.items():
        adding = [
            other
            for other, (place, often) in sums.items()
            if place == index and abs(often - times) <= tolerance * abs(times)
        ]
        times = float(f"{sums[adding[0]][1]:.{DIGITS}g}")
        source = _beginning(name, adding, (index, times), plain, tolerance)
        if source is not None:
            found[name] = Residual(source, tuple(adding[: adding.index(name)]), times)
    return found


def _sum_of(
    name: str, plain: "_Pass", moved: "_Pass", by: Tensor, tolerance: float
) -> tuple[int, float] | None:
    """Return which sum the output of a linear goes into first, and how many times.

    None where it goes through something else before.
    """
    by = by.flatten(0, -2).float()
    for index, (number, before) in enumerate(plain.sums):
        change = moved.sums[index][1] - before
        if number < plain.calls[name] or not change.any():
            continue
        times = ((change * by).sum() / by.square().sum()).item()
        if (change - times * by).norm() > tolerance * change.norm():
            return None
        return index, times
    return None


def _beginning(
    name: str, adding: list[str], place: tuple[int, float], plain: "_Pass", tolerance: float
) -> str | None:
    """Return who reads, before a linear is called, what is in its sum beside outputs of linears."""
    index, times = place
    total = plain.sums[index][1]
    least = tolerance * total.norm()
    begins = total - times * sum(plain.outputs[other] for other in adding)
    if begins.norm() <= least:
        return None
    for source, x in plain.reads[: plain.calls[name]]:
        if (begins - x).norm() <= least:
            return source
    return None


@dataclass
class _Pass:
    """What one pass of a block has shown, in the order of its calls; tokens by hidden, float32."""

    reads: list[tuple[str, Tensor]] = field(default_factory=list)  # of norms and linears
    calls: dict[str, int] = field(default_factory=dict)  # of linears: how many reads before each
    outputs: dict[str, Tensor] = field(default_factory=dict)  # of linears
    sums: list[tuple[int, Tensor]] = field(default_factory=list)  # what may be one, reads before it

    @classmethod
    def of(
        cls,
        block: nn.Module,
        run: RunBlock,
        hidden: Tensor,
        moved: str = "",
        by: Tensor | None = None,
    ) -> "_Pass":
        """Run the block, the output of one linear moved where that is asked for."""
        made, norms = cls(), find_norms(block)
        names = dict(block.named_modules())
        linears = [name for name in find_linears(block) if name in names]  # not those of experts

        def read(name: str, x: Tensor) -> None:
            if name in linears:
                made.calls.setdefault(name, len(made.reads))
            if x.numel() == hidden.numel() and x.shape[-1] == hidden.shape[-1]:
                if name in norms:
                    made.sums.append((len(made.reads), _tokens(x)))
                made.reads.append((name, _tokens(x)))

        def gave(name: str, output: Tensor) -> Tensor | None:
            if output.numel() != hidden.numel() or name in made.outputs:
                return None
            made.outputs[name] = _tokens(output)
            return output + by.view_as(output) if name == moved else None

        with ExitStack() as hooks:
            for name in (*norms, *linears):
                hook = names[name].register_forward_pre_hook(
                    lambda _, args, name=name: read(name, args[0])
                )
                hooks.callback(hook.remove)
            for name in linears:
                hook = names[name].register_forward_hook(
                    lambda _, args, output, name=name: gave(name, output)
                )
                hooks.callback(hook.remove)
            returned = _tokens(run(block, hidden))
            made.sums.append((len(made.reads), returned))
        return made


def _tokens(x: Tensor) -> Float[Tensor, "tokens hidden"]:
    """Return a copy in float32, a row for each token."""
    return x.detach().flatten(0, -2).to(torch.float32, copy=True)
