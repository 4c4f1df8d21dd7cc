"""Where the calibration set comes from."""

from typing import Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from normtweak_core.calibration.scripts import SCRIPTS
from normtweak_core.errors import InputError
from normtweak_core.paths import shown


class CalibrationConfig(BaseModel, frozen=True, extra="forbid"):
    """The calibration set: windows of token ids that statistics are collected on."""

    source: Literal["generated", "text", "dataset", "random"] = Field(
        "generated", description="Written by the model itself, cut from text, or random ids."
    )
    samples: int = Field(128, ge=8, description="Number of windows.")
    length: int | None = Field(
        None, ge=8, description="Tokens per window; null: min(2048, model context)."
    )
    path: str | None = Field(
        None,
        description="source text: a .txt (one document) or .jsonl (field text) file; source "
        "dataset: a file, a folder or a hub name, name:configuration where it has several.",
    )
    languages: Literal["auto"] | list[str] | None = Field(
        "auto",
        description="Scripts (latin, cyrillic, cjk, ...) the first generated token is drawn from; "
        "auto: the vocabulary's dominant ones; null: any token.",
    )

    @field_validator("languages")
    @classmethod
    def _known_scripts(cls, languages: str | list[str] | None) -> str | list[str] | None:
        if not isinstance(languages, list):
            return languages
        unknown = [script for script in languages if script not in SCRIPTS]
        if unknown or not languages or len(set(languages)) < len(languages):
            raise InputError(
                f"must be auto, null or different scripts out of {', '.join(SCRIPTS)}",
                key="languages",
                found=f"found {unknown or languages}",
            )
        return languages

    @model_validator(mode="after")
    def _keys_where_read(self) -> "CalibrationConfig":
        needs_path = self.source in ("text", "dataset")
        if needs_path and self.path is None:
            raise InputError(
                f"is required with source {self.source}", key="path", found="found none"
            )
        if not needs_path and self.path is not None:
            raise InputError(
                "is only read with source text or dataset",
                key="path",
                found=f"found source {self.source}",
                remedy="remove path or change source",
            )
        if self.source != "generated" and self.languages != "auto":
            raise InputError(
                "is only read with source generated",
                key="languages",
                found=f"found source {self.source}",
                remedy="remove languages or change source",
            )
        return self


class ImageCalibrationConfig(CalibrationConfig, frozen=True, extra="forbid"):
    """The calibration set of a quantization, whose windows may hold images."""

    images: str | None = Field(
        None,
        description="Of a model that reads images: a folder of them, or a .jsonl with image and "
        "text. Each window begins with one, and the model goes on writing.",
    )

    @model_validator(mode="after")
    def _images_where_written_about(self) -> "ImageCalibrationConfig":
        other = "source" if self.source != "generated" else "languages"
        if self.images is not None and (other == "source" or self.languages != "auto"):
            raise InputError(
                "is only read with source generated and languages auto, for the model goes on "
                "behind the image",
                key="images",
                found=f"found {other} {shown(getattr(self, other))}",
                remedy=f"remove images or {other}",
            )
        return self


def images_of(config: CalibrationConfig) -> str | None:
    """Return the images that windows begin with; None where they are text."""
    return getattr(config, "images", None)
