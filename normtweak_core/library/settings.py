"""The arguments of `quantize` as the settings of a recipe, and what is wrong with them.

No torch: a wrong argument is answered at once.
"""

import contextlib
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from normtweak_core.calibration.config import CalibrationConfig, ImageCalibrationConfig
from normtweak_core.effort import WithEffort
from normtweak_core.errors import InputError, keys_called
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.foreign.config import WithBase
from normtweak_core.finetune.config import BlockTrainingConfig
from normtweak_core.model.config import ModelConfig
from normtweak_core.paths import shown
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.settings import sentences
from normtweak_core.tweak.config import FinalTuneConfig, NormTweakConfig

FORMATS = ("auto", "compressed-tensors", "gptq", "gguf")
# What the arguments are called, by the key of a recipe that they stand for.
ARGUMENTS = {f"quantization.{name}": name for name in QuantizationConfig.model_fields}
ARGUMENTS |= {f"model.{name}": name for name in ModelConfig.model_fields}
ARGUMENTS |= {f"calibration.{name}": name for name in ("samples", "length", "images")}


class Settings(WithBase, WithEffort, frozen=True, extra="forbid"):
    """What decides the bytes of an export: the sections of a recipe that do."""

    seed: int = Field(0, ge=0, description="Seed of everything random.")
    model: ModelConfig = ModelConfig()
    calibration: ImageCalibrationConfig = ImageCalibrationConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    norm_tweak: NormTweakConfig = NormTweakConfig()
    block_training: BlockTrainingConfig = BlockTrainingConfig()
    final_tune: FinalTuneConfig = FinalTuneConfig()
    export: ExportConfig = ExportConfig()


def parse_settings(
    model: Mapping[str, Any],
    calibration: CalibrationConfig | Mapping[str, Any],
    quantization: Mapping[str, Any],
    sections: Mapping[str, Any],
    seed: int,
    effort: str = "standard",
    base: Any = None,
) -> Settings:
    """Return the settings that arguments stand for.

    Args:
        model: Fields of the section of that name.
        calibration: The section, or fields of it.
        quantization: Fields of the section.
        sections: norm_tweak, block_training, final_tune and export: a section, fields of it, or in
            short whether it is enabled, and the format.
        seed: Of everything random.
        effort: What is left out follows from it.
        base: A checkpoint of another tool, whose codes are kept.

    Raises:
        InputError: An argument is unknown, of the wrong type or out of range.
    """
    _require_known(quantization)
    source = model["source"]
    if not isinstance(source, str | Path):
        raise InputError(
            "must be a folder, a hub id such as owner/name, or reference:llama",
            key="source",
            found=f"found a {type(source).__name__}",
            remedy="save a model in memory with save_pretrained, its tokenizer beside it, and give "
            "the folder",
        )
    with arguments_named():
        try:
            settings = Settings(
                seed=seed,
                effort=effort,
                base=str(base) if isinstance(base, Path) else base,
                model={**model, "source": str(source)},
                calibration=_fields(calibration),
                quantization=quantization,
                **{name: _section(name, value) for name, value in sections.items()},
            )
        except ValidationError as error:
            raise InputError(sentences(error, Settings, ARGUMENTS)) from error
    if settings.export.format not in FORMATS:
        raise InputError(
            f"must be one of {', '.join(FORMATS)}",
            key="export.format",
            found=f"found {settings.export.format}, which holds ternary linears",
            remedy="train a ternary model with `normtweak ternary`",
        )
    return settings


@contextlib.contextmanager
def arguments_named() -> Iterator[None]:
    """Let errors from inside speak of arguments instead of the keys of a recipe.

    Raises:
        InputError: The one from inside.
    """
    with keys_called(ARGUMENTS):
        yield


def _section(name: str, value: Any) -> Any:
    """Return a section that may have been given in short."""
    if isinstance(value, bool) and name != "export":
        return {"enabled": value}
    if isinstance(value, str) and name == "export":
        return {"format": value}
    return value


def _fields(section: CalibrationConfig | Mapping[str, Any]) -> Mapping[str, Any]:
    return section.model_dump() if isinstance(section, CalibrationConfig) else section


def _require_known(quantization: Mapping[str, Any]) -> None:
    known = list(QuantizationConfig.model_fields)
    for name in quantization:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise InputError(
                "is no argument of quantize and no field of QuantizationConfig",
                key=shown(name)[1:-1],
                found="found it",
                remedy=remedy,
            )
