"""Forward passes of both streams through a block, stopped where a linear is to be solved.

A stop is a group of linears that read one tensor. The quantized stream has to wait there for their
weights: the pass of a micro-batch is suspended and goes on with what was solved, so that the block
is computed once, however many stops it has. The float stream waits for nothing: it passes at once,
and leaves what its stops will be asked for. Micro-batches for whose waiting there is no memory run
anew up to every stop. What arrives at a stop is the same in both ways, bit by bit.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, no_type_check

import torch
from greenlet import getcurrent, greenlet
from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.errors import InputError
from normtweak_core.experts.stacked import is_mixture
from normtweak_core.quantization.linears.inputs import RunBlock
from normtweak_core.quantization.linears.residual import Residual
from normtweak_core.quantization.streams import Share


@dataclass(frozen=True)
class Stop:
    """Where passes stop: at the input of a linear, or behind its output.

    Or at a mixture of experts, where a pass holds what they read and which of them each token goes
    to, both in one tuple. Where the rest of the sum is asked for that the output goes into, a pass
    holds the tensor and that, in one tuple as well.
    """

    layer: str
    behind: bool = False
    residual: Residual | None = None


class Passes:
    """The micro-batches of one stream on their way through a block; each is run for every stop.

    To be used as a context; `at` the stops in their order, each once, then `finish`.
    """

    def __init__(
        self,
        block: nn.Module,
        run: RunBlock,
        hidden: Float[Tensor, "samples seq hidden"],
        share: Share,
        stops: list[Stop],
        held: int = 0,
    ):
        """Prepare the passes; nothing is computed yet.

        Args:
            block: Runs with the weights it has at the time.
            run: Runs a block on a micro-batch of windows.
            hidden: What the stream holds in front of the block.
            share: The micro-batches that pass; those that are held out stop nowhere.
            stops: Where, in the order in which the block comes to them.
            held: How many micro-batches there is memory to hold on to.
        """
        self._block, self._run, self._stops = block, run, stops
        self._hidden = hidden
        self._held, self._again = share.training[:held], share.training[held:]
        self._passing = share.held_out

    def __enter__(self) -> "Passes":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def at(self, index: int) -> Iterator[Any]:
        """Yield what each micro-batch of training windows holds at a stop: a tensor, or see `Stop`.

        Raises:
            InputError: The block does not come to it.
        """
        yield from self._held_at(index)
        for part in self._again:
            yield self._reached(index, part)

    def finish(self) -> Float[Tensor, "samples seq hidden"]:
        """Overwrite the stream with the block's output for these windows, and return it."""
        self._finish_held()
        for part in (*self._again, *self._passing):
            self._hidden[part] = self._run(self._block, self._hidden[part])
        return self._hidden

    def _held_at(self, index: int) -> Iterator[Any]:
        raise NotImplementedError

    def _finish_held(self) -> None:
        raise NotImplementedError

    def _reached(self, index: int, part: slice) -> Any:
        """Run one micro-batch up to a stop."""
        caught: list[Any] = []

        def stop(tensor: Any) -> None:
            caught.append(tensor)
            raise _Reached

        with ExitStack() as hooks:
            _watch(self._block, self._stops[index], stop, hooks)
            try:
                self._run(self._block, self._hidden[part])
            except _Reached:
                return caught[0]
        raise self._never_reached(index)

    def _never_reached(self, index: int) -> InputError:
        return InputError(
            "a block must run the same linears on all windows; "
            f"{type(self._block).__name__} did not run {self._stops[index].layer} on some. "
            "Choose another model."
        )


class FloatPasses(Passes):
    """Passes that are done at once, and hold what was seen at each stop until it is asked for."""

    def __enter__(self) -> "FloatPasses":
        self._seen: list[list[Any]] = [[] for _ in self._stops]
        for count, part in enumerate(self._held, start=1):
            self._hidden[part] = self._noted(part)
            for index, seen in enumerate(self._seen):
                if len(seen) != count:
                    raise self._never_reached(index)
        return self

    def _noted(self, part: slice) -> Tensor:
        def note(index: int, before: int) -> Callable[[Any], None]:
            def keep(tensor: Any) -> None:
                if len(self._seen[index]) == before:  # called once more, the first call counts
                    self._seen[index].append(_copy(tensor))  # some blocks go on to change it

            return keep

        with ExitStack() as hooks:
            for index, stop in enumerate(self._stops):
                _watch(self._block, stop, note(index, len(self._seen[index])), hooks)
            return self._run(self._block, self._hidden[part])

    def _held_at(self, index: int) -> Iterator[Any]:
        seen = self._seen[index]
        while seen:
            yield seen.pop(0)

    def _finish_held(self) -> None:
        """Do nothing: their outputs were written on the way in."""


class QuantizedPasses(Passes):
    """Passes that are suspended at each stop, and go on with the weights the block has then."""

    def __enter__(self) -> "QuantizedPasses":
        self._waiting = [_Suspended(lambda part=part: self._result(part)) for part in self._held]
        self._hooks = ExitStack()
        for index, stop in enumerate(self._stops):
            reached = partial(_pause, index)
            _watch(self._block, stop, reached, self._hooks)
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()
        for waiting in self._waiting:
            if waiting:  # begun and not at its end: it ends here, not whenever it is collected
                waiting.throw()

    def _held_at(self, index: int) -> Iterator[Any]:
        for waiting in self._waiting:
            reached, tensor = waiting.switch()
            if reached != index:
                raise self._never_reached(index)
            yield tensor
            del tensor

    def _finish_held(self) -> None:
        for part, waiting in zip(self._held, self._waiting, strict=True):
            self._hidden[part] = waiting.switch()[1]

    def _result(self, part: slice) -> tuple[None, Tensor]:
        return None, self._run(self._block, self._hidden[part])


class _Suspended(greenlet):
    """A forward pass that waits wherever it has come to."""

    next_stop = 0


def _pause(index: int, tensor: Any) -> None:
    """Hand a tensor over and wait; a linear that is called once more is passed by."""
    current = getcurrent()
    if isinstance(current, _Suspended) and index == current.next_stop:
        current.next_stop += 1
        current.parent.switch((index, tensor))


class _Reached(Exception):  # noqa: N818 - it is no error
    """Stops a forward pass where a tensor was wanted."""


def _copy(arrived: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return tuple(map(torch.clone, arrived)) if isinstance(arrived, tuple) else arrived.clone()


def _watch(block: nn.Module, stop: Stop, reached: Callable[[Any], None], hooks: ExitStack) -> None:
    """Call ``reached`` with what a pass holds at a stop, in all passes until the hooks go."""
    module = block.get_submodule(stop.layer)
    if is_mixture(module):
        handle = module.register_forward_pre_hook(
            # What every mixture of transformers is given, in this order.
            lambda _, args, kwargs: reached((*args, *kwargs.values())[:2]),
            with_kwargs=True,
        )
    else:
        rest = None if stop.residual is None else stop.residual.watched(block, hooks)

        @no_type_check  # its checks count calls, and passes that wait in a block end out of turn
        def held(tensor: Tensor) -> None:
            if rest is None:
                reached(tensor)
            elif (added := rest()) is not None:  # called once more, the first call counts
                reached((tensor, added))

        if stop.behind:
            handle = module.register_forward_hook(lambda _, args, output: held(output))
        else:
            handle = module.register_forward_pre_hook(lambda _, args: held(args[0]))
    hooks.callback(handle.remove)
