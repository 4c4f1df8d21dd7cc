"""What a model's activations and logits do in some arithmetic, and whether half precision holds.

A float type holds a model where its forward pass stays finite and ends near that of float32. How
near was read off 22 models (docs/log.md, 2026-11-28): float16 moves the logits by up to 0.6 % of
their size and bfloat16 by up to 5 %, the worst token by 25 %; as ternary models, by up to 5.6 % and
18 %. BitNet linears whose two scales overflow in some tokens move them by 15 % and more. The float
type that a model is stored in is its author's arithmetic: there it need only stay finite.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.stored import PIECE, is_finite

# Root mean square of the change of the logits, as a fraction of their own (both centred): of all
# tokens, and of the token that changes most. Random ternary models can amplify what happens at
# rounding boundaries up to 0.55 of a token: there each linear is judged by itself as well.
FAR = (0.1, 0.5)
FAR_TERNARY = (0.5, 1.0)
HEADROOM = 2  # how much larger than seen an activation of another text may be
TOKENS = 64  # that are compared together
MASK = 1e30  # magnitudes from here on stand for minus infinity in a mask


@dataclass
class Peaks:
    """The largest finite magnitude of what goes in and out of the modules of each place."""

    largest: dict[str, float] = field(default_factory=dict)
    broken: str | None = None  # the first place that gave NaN or infinity

    def note(self, place: str, value: object) -> None:
        """Take a tensor into account; whatever else is passed over."""
        if isinstance(value, tuple | list):
            for part in value:
                self.note(place, part)
        elif isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            for part in value.detach().flatten().split(PIECE):
                magnitudes = part.abs()
                kept = torch.where(magnitudes < MASK, magnitudes, 0)  # NaN is not smaller either
                self.largest[place] = max(self.largest.get(place, 0.0), float(kept.max()))

    def check(self, place: str, value: Tensor) -> None:
        """Note whether what a place gives on is finite."""
        if self.broken is None and not is_finite(value):
            self.broken = place

    def watch(self, module: nn.Module, place: str) -> None:
        """Note all that passes between the modules of a block or model from now on."""

        def see(_: nn.Module, args: object, output: object) -> None:
            self.note(place, args)
            self.note(place, output)

        for part in module.modules():
            part.register_forward_hook(see)


@dataclass(frozen=True)
class Trace:
    """A forward pass."""

    peaks: Peaks
    logits: Float[Tensor, "tokens vocab"]  # float32


def why_not(
    reference: Trace,
    run: Callable[[], Trace],
    dtype: torch.dtype,
    spare: int,
    ternary: bool = False,
    own: bool = False,
) -> str | None:
    """Return why a float type does not hold a model; None where it does.

    Args:
        reference: The model in float32.
        run: The model in the float type, on the same tokens; called where the range does not
            decide already.
        dtype: The float type.
        spare: How much larger than those seen activations may get; 0: only the run itself counts.
        ternary: Whether the model rounds its activations.
        own: Whether the float model is stored in the float type, so that all it is known to do was
            computed there: float32 is then no better, only different.
    """
    limit = torch.finfo(dtype).max
    place, peak = max(reference.peaks.largest.items(), key=lambda item: item[1])
    reach = f"{place} reach {peak:.3g}"
    if spare and peak * spare > limit:
        return f"{reach}, {'beyond' if peak > limit else 'too near to'} {limit:g}"
    found = run()
    broken = found.peaks.broken or (None if found.logits.isfinite().all() else "logits")
    if broken is not None:
        return f"{reach}, beyond {limit:g}" if peak > limit else f"{broken} are NaN or infinite"
    far = None if own else too_far(reference, found, ternary)
    cause = f" ({reach}, beyond {limit:g})" if peak > limit else ""
    return None if far is None else f"{far}{cause}"


def too_far(reference: Trace, found: Trace, ternary: bool = False) -> str | None:
    """Return how far logits move from those of float32; None where that is as far as it should."""
    whole, worst = logit_change(reference.logits, found.logits)
    most, most_of_token = FAR_TERNARY if ternary else FAR
    if whole > most:
        return f"logits move by {100 * whole:.0f} % of their size"
    if worst > most_of_token:
        return f"logits of a token move by {100 * worst:.0f} % of their size"
    return None


def logit_change(
    reference: Float[Tensor, "tokens vocab"], found: Float[Tensor, "tokens vocab"]
) -> tuple[float, float]:
    """Return `relative_change` of logits, in which a constant for all of a token says nothing."""
    return _change(reference, found, lambda logits: logits - logits.mean(dim=-1, keepdim=True))


def relative_change(
    reference: Float[Tensor, "tokens width"], found: Float[Tensor, "tokens width"]
) -> tuple[float, float]:
    """Return the root mean square of the change as a fraction of that of the reference.

    First over all tokens, then that of the token that changes most; NaN where a number is.
    """
    return _change(reference, found, lambda values: values)


def _change(
    reference: Tensor, found: Tensor, prepared: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    """Return `relative_change` of what is made of both, a few tokens at a time."""
    squares, sizes = [], []
    for pair in zip(reference.split(TOKENS), found.split(TOKENS), strict=True):
        ours, theirs = map(prepared, pair)
        squares.append((theirs - ours).double().square().mean(dim=-1))
        sizes.append(ours.double().square().mean(dim=-1))
    whole = float(torch.cat(sizes).mean().clamp(min=1e-300))
    changes = torch.cat(squares)
    return math.sqrt(float(changes.mean()) / whole), math.sqrt(float(changes.max()) / whole)
