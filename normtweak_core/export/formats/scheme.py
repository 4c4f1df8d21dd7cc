"""What all quantized linears of one export share, or how they differ."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.ternary.weight import TernaryLinear


@dataclass(frozen=True)
class Scheme:
    """What config.json says once for every quantized linear."""

    bits: int
    group_size: int | None  # None: one group, the whole row
    symmetric: bool
    activation_bits: int | None = None  # of what the linears read; None: float
    # Whether columns of a group need not follow each other, in some linear at least.
    act_order: bool = field(default=False, compare=False)
    # Of Conv1D layers, whose weights are [in, out]: inputs of a stored block; None: of nn.Linear.
    block: int | None = None

    @classmethod
    def of(cls, weight: QuantizedWeight) -> "Scheme":
        """Return the scheme of one linear; a group as wide as the row counts as given."""
        bits, order = weight.activation_bits, weight.g_idx is not None
        return cls(weight.bits, weight.group_size, weight.symmetric, bits, order)

    def recorded(self) -> dict[str, Any]:
        """Return what a manifest records; what is left out is float, or in order."""
        left_out = {"activation_bits"} if self.activation_bits is None else set()
        left_out |= set() if self.act_order else {"act_order"}
        left_out |= {"block"} if self.block is None else set()
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def of_linear(self, name: str) -> "Scheme":
        """Return what one linear has: the same as all."""
        return self


@dataclass(frozen=True)
class MixedScheme:
    """What config.json says of quantized linears of different widths."""

    widths: Mapping[str, int]  # by name as stored
    group_size: int | None
    symmetric: bool
    # Inputs by name, where each row has a zero point: it is stored as that of a block so wide.
    columns: Mapping[str, int] = field(default_factory=dict)
    act_order: ClassVar[bool] = False

    def of_linear(self, name: str) -> Scheme:
        """Return what one linear has."""
        return Scheme(self.widths[name], self.group_size, self.symmetric)

    def recorded(self) -> dict[str, Any]:
        """Return what a manifest records."""
        return {name: value for name, value in vars(self).items() if name != "columns" or value}

    @property
    def groups(self) -> list[tuple[list[str], int | None]]:
        """The linears that config.json describes together, and the columns of their blocks."""
        found: dict[tuple[int, int | None], list[str]] = {}
        for width, names in self.by_width.items():
            for name in names:
                found.setdefault((width, self.columns.get(name, self.group_size)), []).append(name)
        return [(names, columns) for (_, columns), names in found.items()]

    @property
    def by_width(self) -> dict[int, list[str]]:
        """The linears of each width, both in order."""
        return {
            width: sorted(name for name, own in self.widths.items() if own == width)
            for width in sorted(set(self.widths.values()))
        }


@dataclass(frozen=True)
class TernaryScheme:
    """What config.json says once for every ternary linear."""

    rms_norm: bool  # whether there is an RMSNorm with a gain before every one of them
    rms_norm_eps: float
    act_order: ClassVar[bool] = False

    @classmethod
    def of(cls, linear: TernaryLinear, rms_norm_eps: float) -> "TernaryScheme":
        """Return the scheme of one linear."""
        return cls(linear.gain is not None, rms_norm_eps)

    def of_linear(self, name: str) -> "TernaryScheme":
        """Return what one linear has: the same as all."""
        return self

    def recorded(self) -> dict[str, Any]:
        """Return what a manifest records."""
        return dict(vars(self))

    def __str__(self) -> str:
        return "an RMSNorm before the linear" if self.rms_norm else "no RMSNorm before the linear"


AnyScheme = Scheme | MixedScheme | TernaryScheme


def recorded_scheme(export: Mapping[str, Any]) -> AnyScheme:
    """Return the scheme that the ``export`` entry of a manifest records."""
    if export["format"] == "bitnet":
        return TernaryScheme(export["rms_norm"], export["rms_norm_eps"])
    grid = (export["group_size"], export["symmetric"])
    if "widths" in export:
        return MixedScheme(export["widths"], *grid, export.get("columns", {}))
    read, order = export.get("activation_bits"), export.get("act_order", False)
    return Scheme(export["bits"], *grid, read, order, export.get("block"))
