"""How far the weights of a GGUF file are from those of the export beside it, in words."""

from collections.abc import Mapping
from typing import Any


def error_in_words(error: Mapping[str, Any]) -> str:
    """Return the largest error of all linears: of one weight, and of the linear as a whole.

    Args:
        error: Name of the linear, its largest error as a share of its largest weight, and the norm
            of its error as a share of its norm.
    """
    return (
        f"weights are not those of the export: {error['linear']} has the largest error, "
        f"{error['largest']:.2g} of its largest weight and {error['mean']:.2g} in the mean"
    )
