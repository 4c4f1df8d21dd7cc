"""How a quantized model is trained on."""

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.training.batches import require_whole_parts


class LoraConfig(BaseModel, frozen=True, extra="forbid"):
    """A low-rank update that is merged into the weight before it is rounded."""

    rank: int = Field(32, ge=1, description="Of the update.")
    lr_ratio: float = Field(
        0.02, gt=0, description="Learning rate as a share of the layer's mean scale."
    )


class OnGridConfig(BaseModel, frozen=True, extra="forbid"):
    """How linears that stay on their grid are trained, whatever they are trained towards."""

    batch: int = Field(8, ge=1, description="Windows per optimizer step.")
    lr: float = Field(
        5e-3, gt=0, description="Peak learning rate of latent weights, in levels of their grid."
    )
    scale_lr: float = Field(
        1e-3, gt=0, description="Peak learning rate of scales, as a share of them, and of norms."
    )
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")


class BlockTrainingConfig(OnGridConfig, frozen=True, extra="forbid"):
    """Training of each block's weights, scales and norms on its float output, once quantized."""

    enabled: bool = Field(False, description="Train each block.")
    steps: int = Field(200, ge=1, description="Optimizer steps per block.")

    def as_finetune(self) -> "FinetuneConfig":
        """Return the same as the first part of a fine-tuning."""
        shared = self.model_dump(include=set(OnGridConfig.model_fields))
        return FinetuneConfig(block_steps=self.steps, **shared)


class FinetuneConfig(OnGridConfig, frozen=True, extra="forbid"):
    """Block by block, then end to end; width and grid are those of the export."""

    block_steps: int = Field(
        200, ge=0, description="Optimizer steps per block on its float output; 0: end to end only."
    )
    steps: int = Field(600, ge=1, description="Optimizer steps end to end.")
    accumulate: int = Field(1, ge=1, description="end to end: parts the batch is computed in.")
    lora: LoraConfig | None = Field(
        None, description="Learn a low-rank update instead of whole latent weights."
    )
    float_model: str | None = Field(
        None, description="Where the float model is; null: where the export says it came from."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Arithmetic of the trained model's products; its weights stay float32.",
    )
    gradient_checkpointing: bool = Field(
        False, description="end to end: compute blocks twice to save memory; same result."
    )
    save_every: int = Field(50, ge=1, description="Optimizer steps between checkpoints.")
    data: CalibrationConfig = Field(
        CalibrationConfig(samples=1024, length=256), description="Text to train on."
    )

    @model_validator(mode="after")
    def _keys_where_read(self) -> "FinetuneConfig":
        # A recipe that was written out with its defaults can be read again.
        default = type(self).model_fields["lr"].default
        if self.lora is not None and self.lr != default:
            raise ValueError(
                f"finetune.lr is only read without finetune.lora, whose rate is lr_ratio times "
                f"the layer's mean scale; found {self.lr:g}: remove it"
            )
        require_whole_parts(self.batch, self.accumulate)
        return self
