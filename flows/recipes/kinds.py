"""The three kinds of recipe that end in a registered version, told apart by their sections."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flows.recipes.finetune import parse_finetune_recipe
from flows.recipes.quantize import parse_recipe
from flows.recipes.ternary import parse_ternary_recipe
from normtweak_core.calibration.config import CalibrationConfig


@dataclass(frozen=True)
class RecipeKind:
    """What differs between the recipes of the flows."""

    name: str  # of the flow and of its command
    data: str  # section of the text: what is calibrated with or trained on
    source: str  # key of the float model
    parse: Callable[[dict[str, Any]], Any]

    @property
    def entrypoint(self) -> str:
        """Where Prefect finds the flow, from the root of the source tree."""
        return f"flows/{self.name}.py:{self.name}"

    @property
    def places(self) -> list[str]:
        """Keys that name files or folders which the export is made from."""
        export = ["model.source"] if self.name == "finetune" else []
        return [*export, self.source, f"{self.data}.path"]

    def data_of(self, recipe: Any) -> CalibrationConfig:
        """Return the section of the text."""
        found = recipe
        for part in self.data.split("."):
            found = getattr(found, part)
        return found


QUANTIZE = RecipeKind("quantize", "calibration", "model.source", parse_recipe)
TERNARY = RecipeKind("ternary", "ternary.data", "model.source", parse_ternary_recipe)
FINETUNE = RecipeKind("finetune", "finetune.data", "finetune.float_model", parse_finetune_recipe)
KINDS = (QUANTIZE, TERNARY, FINETUNE)


def kind_of(values: dict[str, Any]) -> RecipeKind:
    """Return the kind of a recipe given as plain values."""
    for kind in (TERNARY, FINETUNE):
        if values.get(kind.name) is not None:
            return kind
    return QUANTIZE
