"""The recipe of a fine-tuning of a quantized model, as one pydantic model."""

from typing import Any, Self

from pydantic import Field, model_validator

from flows.recipes.base import RegisteredRecipe, RegistryConfig, refuse_unread
from flows.recipes.limits import TRAINING_DEVICES, LimitsConfig
from flows.recipes.quantize import QuantizedExport
from normtweak_core.distributed.config import Devices
from normtweak_core.errors import InputError
from normtweak_core.evaluate.config import EvaluationConfig
from normtweak_core.evaluate.gate import GateConfig
from normtweak_core.finetune.config import FinetuneConfig
from normtweak_core.finetune.source import GRID, ExportSource
from normtweak_core.model.config import ModelConfig

# Sections of other recipes that a fine-tuning does not read.
NOT_READ = (
    "calibration",
    "effort",
    "norm_tweak",
    "block_training",
    "final_tune",
    "on_problem",
    "ternary",
)


class StartModel(ModelConfig, frozen=True, extra="forbid"):
    """The export to start from, and the arithmetic of its float model."""

    source: str = Field(
        min_length=1,
        description="Folder of an export, or models:/NAME@ALIAS or models:/NAME/VERSION.",
    )


class FinetuneRecipe(RegisteredRecipe, frozen=True, extra="forbid"):
    """One run of the finetune flow."""

    model: StartModel
    quantization: dict[str, Any] | None = Field(
        None, description="Width and grid come from the export: what is said here must agree."
    )
    finetune: FinetuneConfig = FinetuneConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    export: QuantizedExport = QuantizedExport()
    registry: RegistryConfig = RegistryConfig()
    limits: LimitsConfig = LimitsConfig()
    devices: Devices = TRAINING_DEVICES

    @classmethod
    def refuse(cls, data: dict[str, Any]) -> None:
        """Refuse a recipe without its export, and sections that a fine-tuning does not read.

        Raises:
            InputError: It is one.
        """
        if not isinstance(data.get("model"), dict) or "source" not in data["model"]:
            raise InputError(
                "model.source is required, the folder of an export; found none: give the folder "
                "that normtweak quantize has printed, or models:/NAME@ALIAS."
            )
        refuse_unread(data, NOT_READ, "finetune")
        super().refuse(data)

    @model_validator(mode="after")
    def _a_format_can_hold_it(self) -> Self:
        if self.export.format == "bitnet":
            raise ValueError(
                f"export.format {self.export.format} is a format of ternary models: use auto, "
                "compressed-tensors, gptq or gguf"
            )
        return self


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
