"""What the names in weight files say of a mixture of experts; no torch."""

import re
from collections.abc import Iterable, Mapping, Sequence

MARK = ".experts."
# One matrix of one expert, such as model.layers.0.mlp.experts.3.gate_proj.
_MATRIX = re.compile(r"(?P<mixture>.+)\.experts\.(?P<expert>\d+)\.[^.]+")
_WEIGHT = ".weight"


def mixes_experts(names: Iterable[str]) -> bool:
    """Say whether a matrix of an expert is among some linears, or among some stored tensors."""
    return any(_MATRIX.fullmatch(name.removesuffix(_WEIGHT)) for name in names)


def first_odd_tensor(names: Iterable[str]) -> str | None:
    """Return the first tensor of an expert that is not one matrix by itself, such as a bias.

    None where there is none, and where there are no experts.
    """
    inside = (name for name in names if MARK in name)
    return next((name for name in inside if not _is_matrix(name)), None)


def router_names(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """Return the matrices that say how much of which expert a token gets, without ``.weight``.

    They lie beside the experts and have a row for each, or a single one where they weigh an expert
    that all tokens share.

    Args:
        shapes: Of all stored tensors, by name.
    """
    counts: dict[str, int] = {}
    for name in shapes:
        if found := _MATRIX.fullmatch(name.removesuffix(_WEIGHT)):
            mixture, expert = found["mixture"], int(found["expert"])
            counts[mixture] = max(counts.get(mixture, 0), expert + 1)
    return {
        name.removesuffix(_WEIGHT)
        for name, shape in shapes.items()
        if len(shape) == 2
        and MARK not in name
        and any(shape[0] in (1, counts[part]) for part in _parents(name) if part in counts)
    }


def _is_matrix(name: str) -> bool:
    return name.endswith(_WEIGHT) and bool(_MATRIX.fullmatch(name.removesuffix(_WEIGHT)))


def _parents(name: str) -> Iterable[str]:
    while name := name.rpartition(".")[0]:
        yield name
