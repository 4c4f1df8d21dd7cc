"""What all quantized linears of one export share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.ternary.weight import TernaryLinear


@dataclass(frozen=True)
class Scheme:
    """What config.json says once for every quantized linear."""

    bits: int
    group_size: int | None  # None: one group, the whole row
    symmetric: bool

    @classmethod
    def of(cls, weight: QuantizedWeight) -> "Scheme":
        """Return the scheme of one linear; a group as wide as the row counts as given."""
        return cls(weight.bits, weight.group_size, weight.symmetric)


@dataclass(frozen=True)
class TernaryScheme:
    """What config.json says once for every ternary linear."""

    rms_norm: bool  # whether there is an RMSNorm with a gain before every one of them
    rms_norm_eps: float

    @classmethod
    def of(cls, linear: TernaryLinear, rms_norm_eps: float) -> "TernaryScheme":
        """Return the scheme of one linear."""
        return cls(linear.gain is not None, rms_norm_eps)

    def __str__(self) -> str:
        return "an RMSNorm before the linear" if self.rms_norm else "no RMSNorm before the linear"


def recorded_scheme(export: Mapping[str, Any]) -> Scheme | TernaryScheme:
    """Return the scheme that the ``export`` entry of a manifest records."""
    if export["format"] == "bitnet":
        return TernaryScheme(export["rms_norm"], export["rms_norm_eps"])
    return Scheme(export["bits"], export["group_size"], export["symmetric"])
