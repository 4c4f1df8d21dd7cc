"""The recipe: everything that decides what a run produces, as one pydantic model."""

import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from flows.recipes.errors import sentences
from flows.recipes.file import read_with_overrides
from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.errors import InputError
from normtweak_core.evaluate.config import EvaluationConfig
from normtweak_core.evaluate.gate import GateConfig, require_measured
from normtweak_core.export.config import ExportConfig, Format
from normtweak_core.model.config import ModelConfig
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.tweak.config import FinalTuneConfig, NormTweakConfig
from tasks.registry.names import ALIAS_PATTERN, NAME_PATTERN, is_reserved_alias


class RegistryConfig(BaseModel, frozen=True, extra="forbid"):
    """The registered version. Aliases move only to one that passes the gate."""

    alias: str = Field("candidate", pattern=ALIAS_PATTERN, description="Alias the version takes.")
    promote_to: str | None = Field(
        "champion",
        pattern=ALIAS_PATTERN,
        description="Alias it takes as well, if it passes the gate and is shown to be no worse "
        "than what has it; null: none.",
    )

    @field_validator("alias", "promote_to")
    @classmethod
    def _is_not_reserved(cls, alias: str | None, info: ValidationInfo) -> str | None:
        if alias is not None and is_reserved_alias(alias):
            raise ValueError(
                f"registry.{info.field_name} must be neither latest nor v and a number, which "
                f"MLflow keeps for itself; found {alias!r}"
            )
        return alias


class QuantizedExport(ExportConfig, frozen=True, extra="forbid"):
    """On-disk format and float type of what is not quantized."""

    # A form offers what the flow accepts; what else a recipe says is refused in a sentence.
    format: Format = Field(
        "auto",
        description="auto: compressed-tensors.",
        json_schema_extra={"enum": ["auto", "compressed-tensors", "gptq"]},
    )


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """One run of the quantization flow."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the registered model.")
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    on_problem: Literal["warn", "fail"] = Field(
        "warn",
        description="fail: end the run where a damping or ridge was raised, a layer left float, or "
        "a tweak rolled back; warn: tell problems as warnings, rollbacks as notes.",
    )
    model: ModelConfig = ModelConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    norm_tweak: NormTweakConfig = NormTweakConfig()
    final_tune: FinalTuneConfig = FinalTuneConfig()
    # May be written as null; no form shows them and no dump holds them.
    ternary: SkipJsonSchema[None] = Field(None, exclude=True)
    finetune: SkipJsonSchema[None] = Field(None, exclude=True)
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    export: QuantizedExport = QuantizedExport()
    registry: RegistryConfig = RegistryConfig()

    @model_validator(mode="after")
    def _gate_asks_for_what_is_measured(self) -> Self:
        require_measured(self.gate, self.evaluation)
        return self


# Keys of the contract whose feature does not exist yet, and the one value they may hold.
NOT_BUILT: dict[str, Any] = {
    "quantization.activation_bits": None,
}
# Sections of recipes that other commands carry out.
OTHER_COMMANDS = {"ternary": "ternary", "finetune": "finetune", "ablation": "ablate"}
TERNARY_FORMATS = ("bitnet", "gguf")


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Return the recipe of a YAML file with ``KEY=VALUE`` overrides applied.

    Raises:
        InputError: The file is missing or is not YAML, a key is unknown or not built yet, a value
            is of the wrong type or out of range.
    """
    return parse_recipe(read_with_overrides(path, overrides))


def parse_recipe(data: dict[str, Any]) -> Recipe:
    """Return the validated recipe of plain data.

    Raises:
        InputError: As `load_recipe`.
    """
    _refuse_other_commands(data)
    refuse_unbuilt(data)
    refuse_infinite(data)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise InputError(sentences(error, Recipe)) from error


def refuse_unbuilt(data: dict[str, Any]) -> None:
    """Refuse, by name, keys whose feature does not exist yet.

    Raises:
        InputError: Such a key holds anything but its default.
    """
    for key, default in NOT_BUILT.items():
        value = _lookup(data, key, default)
        if value != default:
            raise InputError(
                f"{key} is not built yet; found {value!r}: remove it or leave it at "
                f"{'null' if default is None else default}."
            )


def _refuse_other_commands(data: dict[str, Any]) -> None:
    for section, command in OTHER_COMMANDS.items():
        if data.get(section) is not None:
            raise InputError(
                f"a recipe with the section {section} is carried out by `normtweak {command} "
                "RECIPE`, not by quantize: run that, or remove the section."
            )
    chosen = _lookup(data, "export.format", None)
    if chosen in TERNARY_FORMATS:
        raise InputError(
            f"export.format {chosen} is a format of ternary models: run normtweak ternary, or "
            "use auto, compressed-tensors or gptq."
        )


def refuse_infinite(value: Any, key: str = "") -> None:
    """Refuse numbers that are NaN or infinite.

    Raises:
        InputError: There is one; the message names its key.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            refuse_infinite(inner, f"{key}.{name}" if key else str(name))
    if isinstance(value, list):
        for inner in value:
            refuse_infinite(inner, key)
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{key} must be a finite number; found {value}.")


def _lookup(data: Any, key: str, default: Any) -> Any:
    for part in key.split("."):
        if not isinstance(data, dict) or part not in data:
            return default
        data = data[part]
    return data
