"""The recipe of a ternary training, as one pydantic model."""

from typing import Any, Self

from pydantic import Field, model_validator

from flows.recipes.base import RegisteredRecipe, RegistryConfig, refuse_unread
from flows.recipes.limits import TRAINING_DEVICES, LimitsConfig
from normtweak_core.distributed.config import Devices
from normtweak_core.evaluate.config import EvaluationConfig
from normtweak_core.evaluate.gate import GateConfig
from normtweak_core.export.config import AnyExportConfig, Format
from normtweak_core.export.formats.checks import check_ternary_format
from normtweak_core.model.config import ModelConfig
from normtweak_core.ternary.config import TernaryConfig

# Sections of the quantization recipe that a ternary training does not read.
NOT_READ = (
    "calibration",
    "quantization",
    "norm_tweak",
    "block_training",
    "final_tune",
    "effort",
    "on_problem",
)


class TernaryExport(AnyExportConfig, frozen=True, extra="forbid"):
    """On-disk format and float type of what is not ternary."""

    format: Format = Field(
        "auto",
        description="auto: bitnet, with a GGUF file beside it where it can; gguf is bitnet that "
        "must.",
        json_schema_extra={"enum": ["auto", "bitnet", "gguf"]},
    )


class TernaryRecipe(RegisteredRecipe, frozen=True, extra="forbid"):
    """One run of the ternary flow."""

    model: ModelConfig = ModelConfig()
    ternary: TernaryConfig = TernaryConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    export: TernaryExport = TernaryExport()
    registry: RegistryConfig = RegistryConfig()
    limits: LimitsConfig = LimitsConfig()
    devices: Devices = TRAINING_DEVICES

    @classmethod
    def refuse(cls, data: dict[str, Any]) -> None:
        """Refuse sections that a ternary training does not read, and what is not built yet.

        Raises:
            InputError: There is one.
        """
        refuse_unread(data, NOT_READ, "ternary")
        super().refuse(data)

    @model_validator(mode="after")
    def _a_format_can_hold_it(self) -> Self:
        check_ternary_format(self.export)
        if self.ternary.activation_bits is None:
            raise ValueError(
                "ternary.activation_bits must be 8, since readers of bitnet always round "
                "activations to 8 bits; found null: remove it"
            )
        return self
