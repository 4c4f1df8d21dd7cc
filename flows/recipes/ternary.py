"""The recipe of a ternary training, as one pydantic model."""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from flows.recipes.file import read_with_overrides
from flows.recipes.quantize import RegistryConfig
from flows.recipes.training import parse_training_recipe
from normtweak_core.errors import InputError
from normtweak_core.evaluate.config import EvaluationConfig
from normtweak_core.evaluate.gate import GateConfig, require_measured
from normtweak_core.export.config import ExportConfig, Format
from normtweak_core.export.formats.checks import check_ternary_format
from normtweak_core.model.config import ModelConfig
from normtweak_core.ternary.config import TernaryConfig
from tasks.registry.names import NAME_PATTERN

# Sections of the quantization recipe that a ternary training does not read.
NOT_READ = ("calibration", "quantization", "norm_tweak", "final_tune", "on_problem")


class TernaryExport(ExportConfig, frozen=True, extra="forbid"):
    """On-disk format and float type of what is not ternary."""

    format: Format = Field(
        "auto",
        description="auto: bitnet, with a GGUF file beside it where it can; gguf is bitnet that "
        "must.",
        json_schema_extra={"enum": ["auto", "bitnet", "gguf"]},
    )


class TernaryRecipe(BaseModel, frozen=True, extra="forbid"):
    """One run of the ternary flow."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the registered model.")
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    model: ModelConfig = ModelConfig()
    ternary: TernaryConfig = TernaryConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    export: TernaryExport = TernaryExport()
    registry: RegistryConfig = RegistryConfig()

    @model_validator(mode="after")
    def _gate_asks_for_what_is_measured(self) -> Self:
        require_measured(self.gate, self.evaluation)
        return self


def load_ternary_recipe(path: Path, overrides: list[str] | None = None) -> TernaryRecipe:
    """Return the recipe of a YAML file with ``KEY=VALUE`` overrides applied.

    Raises:
        InputError: The file is missing or is not YAML, a key is unknown, not built yet or not read
            here, a value is of the wrong type or out of range, or no format can hold the result.
    """
    return parse_ternary_recipe(read_with_overrides(path, overrides))


def parse_ternary_recipe(data: dict[str, Any]) -> TernaryRecipe:
    """Return the validated recipe of plain data.

    Raises:
        InputError: As `load_ternary_recipe`.
    """
    recipe = parse_training_recipe(data, TernaryRecipe, "ternary", NOT_READ)
    check_ternary_format(recipe.export)
    if recipe.ternary.activation_bits is None:
        raise InputError(
            "ternary.activation_bits must be 8, since readers of bitnet always round activations "
            "to 8 bits; found null: remove it."
        )
    return recipe
