"""How the linear layers are quantized."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from normtweak_core.errors import InputError

Width = Literal[2, 3, 4, 8]


class PropagationConfig(BaseModel, frozen=True, extra="forbid"):
    """Correction of each weight for the error that its input has already accumulated."""

    alpha: float = Field(1.0, ge=0, le=1, description="Share of the correction; 0: none.")
    ridge: float = Field(
        0.01, ge=0, description="Ridge of its least squares, a fraction of mean diag(H)."
    )
    residual: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the error of the stream that linears which write to it correct as "
        "well; 0: none.",
    )


class SmoothingConfig(BaseModel, frozen=True, extra="forbid"):
    """Migration of outliers from activations into weights (SmoothQuant, arXiv 2211.10438).

    Read where activations are rounded.
    """

    enabled: bool = Field(True, description="Smooth what the linears read, where that is exact.")
    alpha: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Strength: channels are divided by max abs(X)^alpha / max abs(W)^(1 - alpha).",
    )


class ExpertsConfig(BaseModel, frozen=True, extra="forbid"):
    """Experts of a mixture that few calibration tokens are routed to; each is named in the report.

    The others get their statistics from the tokens that are routed to them.
    """

    min_tokens: float = Field(
        1.0,
        ge=0,
        description="Fewest routed tokens, as a multiple of the width of the hidden state: with "
        "fewer than 1 the Hessian has not even full rank.",
    )
    few_tokens: Literal["all tokens", "none"] = Field(
        "all tokens",
        description="What the statistics of an expert with fewer come from: all tokens of the "
        "block, as if it were routed all of them, or none, which rounds it to nearest.",
    )


class MixedBits(BaseModel, frozen=True, extra="forbid"):
    """A width for each linear, such that the model diverges least within a budget.

    Linears that read the same tensor, which readers fuse, and the experts of a mixture have one.
    """

    average: float = Field(
        gt=0,
        description="Budget: bits per weight over all quantized linears as they are stored, with "
        "codes, scales and zero points.",
    )
    choose_from: tuple[Width, ...] = Field(
        (2, 3, 4, 8), min_length=2, description="Widths to choose from."
    )

    @field_validator("choose_from")
    @classmethod
    def _in_order(cls, widths: tuple[Width, ...]) -> tuple[Width, ...]:
        if len(set(widths)) < len(widths):
            raise InputError(
                "must name each width once",
                key="choose_from",
                found=f"found {list(widths)}",
                remedy="leave out what stands there twice",
            )
        return tuple(sorted(widths))


def _kind_of_bits(value: Any) -> str:
    return "mixed" if isinstance(value, Mapping | MixedBits) else "width"


class QuantizationConfig(BaseModel, frozen=True, extra="forbid"):
    """Width, grid and method of the quantized linears."""

    method: Literal["gptq", "rtn"] = Field("gptq", description="GPTQ, or round to nearest.")
    bits: Annotated[
        Annotated[Width, Tag("width")] | Annotated[MixedBits, Tag("mixed")],
        Discriminator(_kind_of_bits),
    ] = Field(
        2, description="Width of one code; or a budget within which each linear gets its own."
    )
    group_size: int | None = Field(
        64, ge=1, description="Consecutive input columns that share a scale; null: whole row."
    )
    symmetric: bool = Field(False, description="Grid symmetric around zero, without zero points.")
    levels: Literal["full", "ternary", "binary"] = Field(
        "full",
        description="Use all levels, or of a symmetric 2-bit grid only -1, 0, 1 or -1, 1 times the "
        "scale, which then starts from the mean magnitude.",
    )
    act_order: bool = Field(True, description="Take columns by decreasing diag(H); groups static.")
    mse_grid: bool = Field(True, description="Search each grid's clipping for least error.")
    exponents: tuple[Annotated[float, Field(ge=1, le=16)], ...] = Field(
        (2.0, 3.0, 4.0, 6.0),
        min_length=1,
        max_length=8,
        description="Of the errors by which GPTQ's clipping is searched: each row keeps the one "
        "that leaves its output closest, and each costs a pass over the columns.",
    )
    sweeps: int = Field(
        4,
        ge=0,
        le=100,
        description="Sweeps of coordinate descent over scales and codes after GPTQ; 0: none.",
    )
    percdamp: float = Field(
        0.01, ge=0, lt=1, description="Damping of the Hessian, a fraction of its mean diagonal."
    )
    propagation: PropagationConfig = PropagationConfig()
    experts: ExpertsConfig = ExpertsConfig()
    activation_bits: Literal[8] | None = Field(
        None, description="Width of what each linear reads, one scale per token; null: float."
    )
    smoothing: SmoothingConfig = SmoothingConfig()

    @property
    def widths(self) -> tuple[Width, ...]:
        """The widths that a linear may have."""
        return self.bits.choose_from if isinstance(self.bits, MixedBits) else (self.bits,)

    @property
    def in_words(self) -> str:
        """How wide the codes are."""
        if not isinstance(self.bits, MixedBits):
            return f"{self.bits} bits"
        of = ", ".join(map(str, self.bits.choose_from))
        return f"{self.bits.average:g} bits on average, of {of}"

    @property
    def bits_in_tags(self) -> str:
        """The width, or the budget in its place."""
        return f"{self.bits.average:g}" if isinstance(self.bits, MixedBits) else str(self.bits)

    @property
    def _bits_as_written(self) -> str:
        return str(self.bits.model_dump() if isinstance(self.bits, MixedBits) else self.bits)

    @property
    def in_names(self) -> str:
        """What folders are called by: how wide codes and activations are, and the groups."""
        activations = f"a{self.activation_bits}" if self.activation_bits else ""
        group = f"g{self.group_size}" if self.group_size else "channel"
        return f"w{self.bits_in_tags}{activations}{group}"

    @property
    def scheme(self) -> str:
        """Widths of weights and activations as the field writes them; A16: float."""
        return f"W{self.bits_in_tags}A{self.activation_bits or 16}"

    @property
    def on_trial(self) -> "QuantizationConfig":
        """Return the same with the least work: one search of ranges, and nothing after it."""
        least = {"exponents": (3.0,), "sweeps": 0, "propagation": PropagationConfig(alpha=0)}
        return self.model_copy(update=least)

    def at(self, width: Width) -> "QuantizationConfig":
        """Return the same with one width."""
        return self.model_copy(update={"bits": width})

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, handler: Callable[[Any], Any]) -> dict[str, Any]:
        """Leave out what is not read where activations stay float, as if there were no such key."""
        fields = handler(self)
        if self.activation_bits is None:
            for name in ("activation_bits", "smoothing"):
                fields.pop(name, None)
        return fields

    @model_validator(mode="after")
    def _levels_fit_the_grid(self) -> "QuantizationConfig":
        if self.levels != "full" and not (self.bits == 2 and self.symmetric):
            raise ValueError(
                f"quantization.levels {self.levels} needs bits: 2 and symmetric: true, which hold "
                f"its levels; found bits: {self._bits_as_written} and symmetric: "
                f"{str(self.symmetric).lower()}"
            )
        return self

    @model_validator(mode="after")
    def _readers_round_activations(self) -> "QuantizationConfig":
        if self.activation_bits is not None and isinstance(self.bits, MixedBits):
            raise ValueError(
                "quantization.activation_bits 8 needs one width of all weights, whose widths are "
                f"chosen without it; found bits: {self._bits_as_written}"
            )
        if self.activation_bits is not None and not self.symmetric:
            raise ValueError(
                "quantization.activation_bits 8 needs symmetric: true: readers unpack a weight "
                "with zero points while they load it, and then round no activations; found "
                "symmetric: false"
            )
        return self
