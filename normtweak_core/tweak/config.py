"""How the norms are trained, block by block and at the end."""

from typing import Literal

from pydantic import BaseModel, Field


class NormTweakConfig(BaseModel, frozen=True, extra="forbid"):
    """Norm tweaking of one block after its linears are quantized (arXiv 2309.02784)."""

    enabled: bool = Field(True, description="Tweak the norms of each block.")
    loss: Literal["channel", "mse", "kl"] = Field(
        "channel", description="Distance between the float and the quantized block output."
    )
    target: Literal["local", "global"] = Field(
        "global",
        description="Float output on the quantized input (local) or on the float input (global).",
    )
    lr: float = Field(1.0e-3, gt=0, description="Learning rate of the first block.")
    lr_scale: float = Field(
        1.0, ge=0, description="Growth over depth: the last blocks learn at lr * (1 + lr_scale)."
    )
    schedule: Literal["constant", "step", "linear", "cosine", "exponential"] = Field(
        "linear", description="Shape of the learning rate over depth."
    )
    iterations: int = Field(1, ge=1, le=64, description="Passes over the calibration set.")
    rollback: bool = Field(
        True, description="Keep the old norms where the held-out windows do not agree."
    )


class FinalTuneConfig(BaseModel, frozen=True, extra="forbid"):
    """End-to-end tuning of the norms, and scales, of the finished quantized model."""

    enabled: bool = Field(True, description="Tune all norms against the float model's logits.")
    steps: int = Field(200, ge=1, description="Optimizer steps.")
    lr: float = Field(1.0e-3, gt=0, description="Learning rate of norms.")
    scales: bool = Field(True, description="Tune the scales of quantized linears with them.")
    scale_lr: float = Field(
        3.0e-3, gt=0, description="Learning rate of scales, as a share of them."
    )
