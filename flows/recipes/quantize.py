"""The recipe: everything that decides what a run produces, as one pydantic model."""

from typing import Any, Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from flows.recipes.base import RegisteredRecipe, RegistryConfig, looked_up
from flows.recipes.limits import DEVICES, LimitsConfig
from normtweak_core.calibration.config import ImageCalibrationConfig
from normtweak_core.distributed.config import Devices
from normtweak_core.effort import WithEffort
from normtweak_core.errors import InputError
from normtweak_core.evaluate.config import EvaluationConfig
from normtweak_core.evaluate.gate import GateConfig
from normtweak_core.export.config import ExportConfig, Format
from normtweak_core.export.foreign.config import WithBase
from normtweak_core.finetune.config import BlockTrainingConfig
from normtweak_core.model.config import ModelConfig
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.tweak.config import FinalTuneConfig, NormTweakConfig

# Sections of recipes that other commands carry out.
OTHER_COMMANDS = {"ternary": "ternary", "finetune": "finetune", "ablation": "ablate"}


class QuantizedExport(ExportConfig, frozen=True, extra="forbid"):
    """On-disk format and float type of what is not quantized."""

    # A form offers what the flow accepts; what else a recipe says is refused in a sentence.
    format: Format = Field(
        "auto",
        description="auto: compressed-tensors. gguf is that with a GGUF file beside it, "
        "which holds the same weights for llama.cpp.",
        json_schema_extra={"enum": ["auto", "compressed-tensors", "gptq", "gguf"]},
    )


class Recipe(WithBase, WithEffort, RegisteredRecipe, frozen=True, extra="forbid"):
    """One run of the quantization flow."""

    on_problem: Literal["warn", "fail"] = Field(
        "warn",
        description="fail: end the run where a damping or ridge was raised, a layer left float, or "
        "a tweak rolled back; warn: tell problems as warnings, rollbacks as notes.",
    )
    model: ModelConfig = ModelConfig()
    calibration: ImageCalibrationConfig = ImageCalibrationConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    norm_tweak: NormTweakConfig = NormTweakConfig()
    block_training: BlockTrainingConfig = BlockTrainingConfig()
    final_tune: FinalTuneConfig = FinalTuneConfig()
    # May be written as null; no form shows them and no dump holds them.
    ternary: SkipJsonSchema[None] = Field(None, exclude=True)
    finetune: SkipJsonSchema[None] = Field(None, exclude=True)
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    export: QuantizedExport = QuantizedExport()
    registry: RegistryConfig = RegistryConfig()
    limits: LimitsConfig = LimitsConfig()
    devices: Devices = DEVICES

    @classmethod
    def refuse(cls, data: dict[str, Any]) -> None:
        """Refuse the recipe of another command, and what is not built yet.

        Raises:
            InputError: It is one.
        """
        for section, command in OTHER_COMMANDS.items():
            if data.get(section) is not None:
                raise InputError(
                    f"a recipe with the section {section} is carried out by `normtweak {command} "
                    "RECIPE`, not by quantize: run that, or remove the section."
                )
        chosen = looked_up(data, "export.format", None)
        if chosen == "bitnet":
            raise InputError(
                f"export.format {chosen} is a format of ternary models: run normtweak ternary, or "
                "use auto, compressed-tensors, gptq or gguf."
            )
        super().refuse(data)
