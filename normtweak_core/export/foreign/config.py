"""The key of a recipe that names another tool's checkpoint to start from, and what it rules out."""

from pydantic import BaseModel, Field, model_validator

from normtweak_core.effort import EFFORTS
from normtweak_core.errors import InputError
from normtweak_core.quantization.config import QuantizationConfig

GRID = ("bits", "group_size", "symmetric")  # what the checkpoint says; a recipe may repeat it


class WithBase(BaseModel, frozen=True):
    """Settings of a quantization that may start from codes that others have made."""

    base: str | None = Field(
        None,
        min_length=1,
        exclude_if=lambda base: base is None,  # as recipes were told before there was the key
        description="Folder or hub id (owner/name, owner/name@revision) of a checkpoint of the "
        "model by GPTQModel, AutoRound, AutoAWQ or llm-compressor: its codes are kept, norms and "
        "scales are trained; null: GPTQ makes the codes.",
    )

    @model_validator(mode="after")
    def _codes_are_kept(self) -> "WithBase":
        if self.base is None:
            return self
        if self.block_training.enabled:
            raise InputError(
                "must be false with base, whose codes are kept",
                key="block_training.enabled",
                found="it is true, which rounds anew",
                remedy="set it to false, or leave base out",
            )
        by_effort = EFFORTS[self.effort]
        for key, field in QuantizationConfig.model_fields.items():
            expected = by_effort.get(f"quantization.{key}", field.default)
            found = getattr(self.quantization, key)
            if key not in GRID and found != expected and list_of(found) != expected:
                raise InputError(
                    "is not read with base, whose codes are kept",
                    key=f"quantization.{key}",
                    found=f"found {list_of(found)}",
                    remedy="remove it",
                )
        return self


def list_of(value: object) -> object:
    """Return a value as a recipe writes it."""
    return list(value) if isinstance(value, tuple) else value
