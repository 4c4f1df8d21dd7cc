"""Where the calibration set comes from."""

from typing import Literal

from pydantic import BaseModel, Field, model_validator


class CalibrationConfig(BaseModel, frozen=True, extra="forbid"):
    """The calibration set: windows of token ids that statistics are collected on."""

    source: Literal["generated", "text", "dataset", "random"] = Field(
        "generated", description="Written by the model itself, cut from text, or random ids."
    )
    samples: int = Field(128, ge=8, description="Number of windows.")
    length: int | None = Field(
        None, ge=8, description="Tokens per window; null: min(2048, model context)."
    )
    path: str | None = Field(None, description="Text file (.txt, .jsonl) or data set name.")
    languages: Literal["auto"] | list[str] | None = Field(
        "auto",
        description="Scripts the first generated token is drawn from; auto: the vocabulary's "
        "dominant ones; null: any token.",
    )

    @model_validator(mode="after")
    def _path_where_needed(self) -> "CalibrationConfig":
        needs_path = self.source in ("text", "dataset")
        if needs_path and self.path is None:
            raise ValueError(
                f"calibration.path is required with calibration.source={self.source}; found none"
            )
        if not needs_path and self.path is not None:
            raise ValueError(
                f"calibration.path is only read with source text or dataset; found "
                f"source={self.source}: remove path or change source"
            )
        return self
