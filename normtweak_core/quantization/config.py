"""How the linear layers are quantized."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator
from pydantic.json_schema import SkipJsonSchema


class PropagationConfig(BaseModel, frozen=True, extra="forbid"):
    """Correction of each weight for the error that its input has already accumulated."""

    alpha: float = Field(1.0, ge=0, le=1, description="Share of the correction; 0: none.")
    ridge: float = Field(
        0.01, ge=0, description="Ridge of its least squares, a fraction of mean diag(H)."
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


class QuantizationConfig(BaseModel, frozen=True, extra="forbid"):
    """Width, grid and method of the quantized linears."""

    method: Literal["gptq", "rtn"] = Field("gptq", description="GPTQ, or round to nearest.")
    bits: Literal[2, 3, 4, 8] = Field(2, description="Width of one code.")
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
    activation_bits: SkipJsonSchema[None] = Field(None, exclude=True)  # no other value yet

    @model_validator(mode="after")
    def _levels_fit_the_grid(self) -> "QuantizationConfig":
        if self.levels != "full" and not (self.bits == 2 and self.symmetric):
            raise ValueError(
                f"quantization.levels {self.levels} needs bits: 2 and symmetric: true, which hold "
                f"its levels; found bits: {self.bits} and symmetric: {str(self.symmetric).lower()}"
            )
        return self
