"""Width and grid that all quantized linears of one export share."""

from dataclasses import dataclass

from normtweak_core.quantize.weight import QuantizedWeight


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
