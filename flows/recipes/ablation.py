"""The recipe of an ablation: a base, and the studies that change one factor of it at a time."""

from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from flows.recipes.base import BaseRecipe, put
from flows.recipes.limits import DEVICES, LimitsConfig
from flows.recipes.quantize import QuantizedExport, Recipe
from normtweak_core.ablation.config import (
    KEYS,
    AblationConfig,
    Value,
    changes_of,
    value_name,
)
from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.distributed.config import Devices
from normtweak_core.effort import WithEffort
from normtweak_core.errors import InputError
from normtweak_core.evaluate.config import EvaluationConfig
from normtweak_core.finetune.config import BlockTrainingConfig
from normtweak_core.model.config import ModelConfig
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.tweak.config import FinalTuneConfig, NormTweakConfig
from tasks.registry.names import NAME_PATTERN

BASE = "base"  # the study whose one value changes nothing
NOT_READ = ("gate", "registry", "on_problem")  # of a recipe of quantize


class AblationRecipe(WithEffort, BaseRecipe, frozen=True, extra="forbid"):
    """The base of an ablation, and its studies.

    The base has the keys of a recipe of quantize but for `NOT_READ`: cells are not registered, and
    a problem of a cell is part of its result.
    """

    name: str = Field(pattern=NAME_PATTERN, description="Name of the ablation.")
    seed: int = Field(0, ge=0, description="First seed; repetitions take those above it.")
    model: ModelConfig = ModelConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    norm_tweak: NormTweakConfig = NormTweakConfig()
    block_training: BlockTrainingConfig = BlockTrainingConfig()
    final_tune: FinalTuneConfig = FinalTuneConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: QuantizedExport = QuantizedExport()
    ablation: AblationConfig = AblationConfig()
    limits: LimitsConfig = LimitsConfig()
    devices: Devices = DEVICES

    @classmethod
    def refuse(cls, data: dict[str, Any]) -> None:
        """Refuse sections that an ablation does not read.

        Raises:
            InputError: There is one.
        """
        if unread := [key for key in NOT_READ if key in data]:
            raise InputError(
                f"{unread[0]} is not read by normtweak ablate, whose cells are compared and not "
                "registered: remove it."
            )

    @model_validator(mode="after")
    def _every_study_has_an_effect(self) -> Self:
        chosen = self.ablation.studies.chosen()
        for study, key in KEYS.items():
            if study in chosen and not self.norm_tweak.enabled:
                raise ValueError(
                    f"ablation.studies.{study} varies {key}, which is only read with "
                    "norm_tweak.enabled true; found false: enable it, or leave the study out by []"
                )
        if "schedule" in chosen and self.norm_tweak.lr_scale == 0:
            raise ValueError(
                "ablation.studies.schedule needs norm_tweak.lr_scale above 0, without which every "
                "schedule is constant; found 0: raise it, or leave the study out by []"
            )
        if "stage" in chosen and self.quantization.propagation.alpha == 0:
            raise ValueError(
                "ablation.studies.stage needs quantization.propagation.alpha above 0 for the "
                "stages from propagation on; found 0: raise it, or leave the study out by []"
            )
        base_recipe(self, self.seed)  # refuses what no cell could be
        return self

    @field_validator("evaluation")
    @classmethod
    def _is_of_a_text(cls, evaluation: EvaluationConfig) -> EvaluationConfig:
        if evaluation.tasks:
            raise ValueError(
                "evaluation.tasks is not read by normtweak ablate, which compares cells on a text; "
                f"found {evaluation.tasks}: remove it, or score an export with normtweak evaluate"
            )
        return evaluation

    @property
    def needs_training_text(self) -> bool:
        """Whether a text has to come from the model itself, since the recipe names none."""
        return (
            "text" in self.ablation.studies.calibration
            and self.ablation.text is None
            and self.calibration.source != "text"
        )

    def text(self, training_text: str = "") -> str:
        """Return the text of the calibration study; ``training_text`` where none is named."""
        named = self.calibration.path if self.calibration.source == "text" else None
        return self.ablation.text or named or training_text


@dataclass(frozen=True)
class PlannedCell:
    """One recipe of a study."""

    study: str
    value: Value
    recipe: Recipe

    @property
    def name(self) -> str:
        """What people call it."""
        what = BASE if self.study == BASE else f"{self.study} {value_name(self.study, self.value)}"
        return f"{what}, seed {self.recipe.seed}"


def planned_cells(recipe: AblationRecipe, training_text: str) -> list[PlannedCell]:
    """Return the base with every seed of any study, then the cells of all studies.

    Cells of different studies can be the same recipe: the base is a value of most of them.

    Args:
        recipe: Base and studies.
        training_text: Path of what a reference model was trained on; read where the recipe names
            no text.
    """
    chosen = recipe.ablation.studies.chosen()
    repeats = {study: getattr(recipe.ablation.seeds, study) for study in chosen}
    seeds = range(recipe.seed, recipe.seed + max(repeats.values()))
    cells = [PlannedCell(BASE, BASE, base_recipe(recipe, seed)) for seed in seeds]
    for study, values in chosen.items():
        for value in values:
            changes = changes_of(study, value, recipe.calibration, recipe.text(training_text))
            cells += [
                PlannedCell(study, value, base_recipe(recipe, seed, changes))
                for seed in seeds[: repeats[study]]
            ]
    return cells


def base_recipe(recipe: AblationRecipe, seed: int, changes: dict[str, Any] | None = None) -> Recipe:
    """Return the base as a recipe of quantize, with another seed and changes by full key.

    Raises:
        InputError: No recipe of quantize holds these values together.
    """
    data = recipe.model_dump(mode="json", exclude={"ablation"}) | {"seed": seed}
    for key, value in (changes or {}).items():
        put(data, key, value)
    return Recipe.parse(data)
