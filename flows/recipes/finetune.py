"""The recipe of a fine-tuning of a quantized model, as one pydantic model."""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from flows.recipes.file import read_with_overrides
from flows.recipes.quantize import QuantizedExport, RegistryConfig
from flows.recipes.training import parse_training_recipe
from normtweak_core.errors import InputError
from normtweak_core.evaluate.config import EvaluationConfig
from normtweak_core.evaluate.gate import GateConfig, require_measured
from normtweak_core.finetune.config import FinetuneConfig
from normtweak_core.finetune.source import GRID, ExportSource
from normtweak_core.model.config import ModelConfig
from tasks.registry.names import NAME_PATTERN

# Sections of other recipes that a fine-tuning does not read.
NOT_READ = ("calibration", "norm_tweak", "final_tune", "on_problem", "ternary")


class StartModel(ModelConfig, frozen=True, extra="forbid"):
    """The export to start from, and the arithmetic of its float model."""

    source: str = Field(
        min_length=1,
        description="Folder of an export, or models:/NAME@ALIAS or models:/NAME/VERSION.",
    )


class FinetuneRecipe(BaseModel, frozen=True, extra="forbid"):
    """One run of the finetune flow."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the registered model.")
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    model: StartModel
    quantization: dict[str, Any] | None = Field(
        None, description="Width and grid come from the export: what is said here must agree."
    )
    finetune: FinetuneConfig = FinetuneConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    export: QuantizedExport = QuantizedExport()
    registry: RegistryConfig = RegistryConfig()

    @model_validator(mode="after")
    def _gate_asks_for_what_is_measured(self) -> Self:
        require_measured(self.gate, self.evaluation)
        return self


def load_finetune_recipe(path: Path, overrides: list[str] | None = None) -> FinetuneRecipe:
    """Return the recipe of a YAML file with ``KEY=VALUE`` overrides applied.

    Raises:
        InputError: The file is missing or is not YAML, a key is unknown, not built yet or not read
            here, or a value is of the wrong type or out of range.
    """
    return parse_finetune_recipe(read_with_overrides(path, overrides))


def parse_finetune_recipe(data: dict[str, Any]) -> FinetuneRecipe:
    """Return the validated recipe of plain data.

    Raises:
        InputError: As `load_finetune_recipe`.
    """
    if not isinstance(data.get("model"), dict) or "source" not in data["model"]:
        raise InputError(
            "model.source is required, the folder of an export; found none: give the folder that "
            "normtweak quantize has printed, or models:/NAME@ALIAS."
        )
    recipe = parse_training_recipe(data, FinetuneRecipe, "finetune", NOT_READ)
    if recipe.export.format in ("bitnet", "gguf"):
        raise InputError(
            f"export.format {recipe.export.format} is a format of ternary models: use auto, "
            "compressed-tensors or gptq."
        )
    return recipe


def require_agreement(recipe: FinetuneRecipe, source: ExportSource) -> None:
    """Accept a recipe that says nothing else about width, grid and float type than the export.

    Raises:
        InputError: It does, or asks for what a fine-tuning does not do.
    """
    for key, wanted in (recipe.quantization or {}).items():
        if key not in GRID:
            raise InputError(
                f"quantization.{key} is not read by normtweak finetune: width and grid come from "
                "the export. Remove it."
            )
        found = getattr(source, key)
        if wanted != found or isinstance(wanted, bool) != isinstance(found, bool):
            raise InputError(
                f"quantization.{key} comes from the export, where it is {_shown(found)}; the "
                f"recipe says {_shown(wanted)}: remove it, or quantize anew."
            )
    if recipe.export.dtype not in ("auto", source.dtype):
        raise InputError(
            f"export.dtype comes from the export, whose scales are {source.dtype}; the recipe says "
            f"{recipe.export.dtype}: remove it."
        )


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower()
