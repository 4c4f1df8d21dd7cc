"""Where transformers puts a stored matrix of an expert: into a stack, at which place."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

# What loading does to the tensors of a mixture: all experts of a kind are stacked, then the kinds
# of each expert put one below the other.
STACKED = (("MergeModulelist", 0),)
STACKED_AND_JOINED = (*STACKED, ("Concatenate", 1))


@dataclass(frozen=True)
class Merged:
    """A stored tensor of which the model's own is made, with others."""

    place: tuple[int, int] | None  # expert, and kind within it; None: it is not simply stacked


def merged(converters: Iterable[Any], pattern: str, stored_name: str) -> Merged:
    """Return what becomes of a stored tensor that a rule of transformers merges with others.

    Args:
        converters: The rules (`WeightConverter`).
        pattern: Of the one that applies.
        stored_name: Of the tensor.
    """
    rule = next(rule for rule in converters if pattern in rule.source_patterns)
    steps = tuple((type(step).__name__, getattr(step, "dim", None)) for step in rule.operations)
    kinds = len(rule.source_patterns)
    numbers = [int(part) for part in stored_name.split(".") if part.isdecimal()]
    if steps != (STACKED if kinds == 1 else STACKED_AND_JOINED) or not numbers:
        return Merged(None)
    return Merged((numbers[-1], rule.source_patterns.index(pattern)))


def first_missing(places: Iterable[tuple[int, int]], experts: int) -> tuple[int, int] | None:
    """Return the first expert and kind that a stack lacks; None where it is whole."""
    found = set(places)
    kinds = 1 + max(kind for _, kind in found)
    return next((one for one in product(range(experts), range(kinds)) if one not in found), None)
