"""The recipes, by the command that carries them out, and the three that end in a version."""

from dataclasses import dataclass
from typing import Any

from flows.recipes.ablation import AblationRecipe
from flows.recipes.base import BaseRecipe, RegisteredRecipe
from flows.recipes.finetune import FinetuneRecipe
from flows.recipes.polynomial import PolynomialRecipe
from flows.recipes.quantize import Recipe
from flows.recipes.ternary import TernaryRecipe
from normtweak_core.calibration.config import CalibrationConfig


@dataclass(frozen=True)
class RecipeKind:
    """What differs between the recipes of the flows."""

    name: str  # of the flow and of its command
    data: str  # section of the text: what is calibrated with or trained on
    source: str  # key of the float model
    recipe: type[RegisteredRecipe]

    @property
    def entrypoint(self) -> str:
        """Where Prefect finds the flow, from the root of the source tree."""
        return f"flows/{self.name}.py:{self.name}"

    @property
    def places(self) -> list[str]:
        """Keys that name files or folders which the export is made from."""
        export = ["model.source"] if self.name == "finetune" else []
        images = ["calibration.images"] if self.name == "quantize" else []
        return [*export, self.source, f"{self.data}.path", *images]

    def data_of(self, recipe: Any) -> CalibrationConfig:
        """Return the section of the text."""
        found = recipe
        for part in self.data.split("."):
            found = getattr(found, part)
        return found


QUANTIZE = RecipeKind("quantize", "calibration", "model.source", Recipe)
TERNARY = RecipeKind("ternary", "ternary.data", "model.source", TernaryRecipe)
FINETUNE = RecipeKind("finetune", "finetune.data", "finetune.float_model", FinetuneRecipe)
KINDS = (QUANTIZE, TERNARY, FINETUNE)

RECIPES: dict[str, type[BaseRecipe]] = {
    **{kind.name: kind.recipe for kind in KINDS},
    "ablate": AblationRecipe,
    "polynomial": PolynomialRecipe,
}


def kind_of(values: dict[str, Any]) -> RecipeKind:
    """Return the kind of a recipe given as plain values."""
    for kind in (TERNARY, FINETUNE):
        if values.get(kind.name) is not None:
            return kind
    return QUANTIZE
