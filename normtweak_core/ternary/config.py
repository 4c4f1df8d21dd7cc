"""How a float model is trained until it lives in ternary weights."""

from typing import Literal

from pydantic import BaseModel, Field, JsonValue, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.training.batches import require_whole_parts

START_WINDOWS = 128  # at most, that the start from GPTQ has its statistics from
# Peak learning rates where none is given: a step of half a scale makes another code of a weight.
ABSMEAN_LR, SHARE_OF_A_SCALE = 1e-3, 0.03
SCHEDULE = ("schedule", "scope", "order", "overlap", "lambda_start")  # keys beside warmup
# For forms; out of range, a share is refused in a sentence of its own.
SHARE: dict[str, JsonValue] = {"minimum": 0, "maximum": 1}


class TernaryConfig(BaseModel, frozen=True, extra="forbid"):
    """Surgery, schedule, objective and optimizer of a ternary training."""

    start: Literal["gptq", "absmean"] = Field(
        "gptq",
        description="Latent weights start where GPTQ and propagation put them, or as the float "
        "model's own, which absmean rounds to nearest.",
    )
    norm: Literal["rms", "none"] = Field("rms", description="RMSNorm before every linear, or none.")
    affine: bool = Field(True, description="Extra norms have a learned gain.")
    share_gains: bool = Field(
        True,
        description="Linears that read the same tensor share one gain: faster, and GGUF needs it.",
    )
    ramp_norm: bool = Field(
        True, description="Let the norms that replace nothing come in with lambda, not at once."
    )
    schedule: Literal["linear", "cosine", "sigmoid", "exponential"] = Field(
        "linear", description="How lambda rises from lambda_start to 1."
    )
    scope: Literal["global", "layerwise"] = Field(
        "global", description="All blocks together, or one block after another."
    )
    order: Literal["forward", "backward"] = Field(
        "forward", description="scope layerwise: first block first, or last block first."
    )
    overlap: float = Field(
        0.5, ge=0, lt=1, description="scope layerwise: share of a block's rise beside the next's."
    )
    warmup: float | None = Field(
        None,
        description="Share of training after which lambda is 1 everywhere; 0: no schedule. null: "
        "0.5 with start absmean, or where another key of the schedule is set; else 0.",
        json_schema_extra=SHARE,
    )
    lambda_start: float = Field(
        0.0, description="Lambda of the first step.", json_schema_extra=SHARE
    )
    steps: int = Field(300, ge=1, description="Optimizer steps.")
    batch: int = Field(8, ge=1, description="Windows per optimizer step.")
    accumulate: int = Field(1, ge=1, description="Parts that the batch is computed in.")
    lr: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate. null: with start absmean 0.001, else 0.03 of the mean "
        "scale of the ternary linears.",
    )
    lr_second: float | None = Field(
        None, gt=0, description="Rate at half of training, falling to 0; null: one cosine."
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Of matrices; with lr_second only in the first half."
    )
    objective: Literal["ce", "kd", "mix"] = Field(
        "kd", description="Cross-entropy, divergence from the float model's logits, or both."
    )
    kd_weight: float | None = Field(
        None, gt=0, lt=1, description="objective mix: share of the divergence; null: 0.5."
    )
    hidden_weight: float = Field(
        0.0, ge=0, description="Weight of the distance of the blocks' outputs; not with ce."
    )
    temperature: float = Field(1.0, gt=0, description="Of both logits in the divergence.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    activation_bits: Literal[8] | SkipJsonSchema[None] = Field(
        8, description="Width of what a linear reads. None, in the library alone: float."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Arithmetic of the trained model's products; its weights stay float32.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute blocks twice to save memory; same result."
    )
    save_every: int = Field(50, ge=1, description="Optimizer steps between checkpoints.")
    data: CalibrationConfig = Field(
        CalibrationConfig(samples=256, length=256), description="Text to train on."
    )

    @property
    def relative(self) -> bool:
        """Whether the learning rate is a share of the mean scale of the linears."""
        return self.lr is None and self.start == "gptq"

    @property
    def peak(self) -> float:
        """Peak learning rate, or that share."""
        return self.lr or (SHARE_OF_A_SCALE if self.relative else ABSMEAN_LR)

    @property
    def rising(self) -> float:
        """Share of training during which lambda rises somewhere."""
        if self.warmup is not None:
            return self.warmup
        changed = any(getattr(self, k) != type(self).model_fields[k].default for k in SCHEDULE)
        return 0.5 if self.start == "absmean" or changed else 0.0

    @field_validator("warmup")
    @classmethod
    def _fits_into_training(cls, warmup: float | None) -> float | None:
        if warmup is not None and not 0 <= warmup <= 1:
            raise ValueError(
                f"ternary.warmup must be a share of training, from 0 to 1; found {warmup:g}: a "
                "schedule longer than the training never reaches lambda 1"
            )
        return warmup

    @field_validator("lambda_start")
    @classmethod
    def _is_a_share(cls, lam: float) -> float:
        if not 0 <= lam <= 1:
            raise ValueError(f"ternary.lambda_start must be from 0 to 1; found {lam:g}")
        return lam

    @model_validator(mode="after")
    def _keys_where_read(self) -> "TernaryConfig":
        given = self.model_fields_set
        for key, needed, holds in (
            ("affine", "norm rms", self.norm == "rms"),
            ("share_gains", "norm rms", self.norm == "rms"),
            ("ramp_norm", "norm rms", self.norm == "rms"),
            ("order", "scope layerwise", self.scope == "layerwise"),
            ("overlap", "scope layerwise", self.scope == "layerwise"),
            ("schedule", "warmup above 0", self.rising > 0),
            ("lambda_start", "warmup above 0", self.rising > 0),
            ("lr_second", "lr or start absmean", not self.relative),
            ("kd_weight", "objective mix", self.objective == "mix"),
            ("temperature", "objective kd or mix", self.objective != "ce"),
            ("hidden_weight", "objective kd or mix", self.objective != "ce"),
        ):
            default = type(self).model_fields[key].default
            if key in given and not holds and getattr(self, key) != default:
                raise ValueError(
                    f"ternary.{key} is only read with {needed}; found {getattr(self, key)}: "
                    "remove it"
                )
        require_whole_parts(self.batch, self.accumulate)
        return self
