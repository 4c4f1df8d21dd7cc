"""Whose codes an export holds; no torch here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """Where codes come from that another tool has made."""

    float_model: str
    base: str
    quantized_by: str
    license: str  # empty: it is not told
