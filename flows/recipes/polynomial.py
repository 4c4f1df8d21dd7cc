"""The recipe of the polynomial study, read and checked as the main recipe is."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from flows.recipes.errors import sentences
from flows.recipes.file import read_with_overrides
from normtweak_core.errors import InputError, keys_called
from normtweak_core.model.source import resolve_device
from normtweak_core.polynomial.config import (
    FloatTrainingConfig,
    GridConfig,
    LoraConfig,
    NetworkConfig,
    SamplesConfig,
)
from tasks.registry.names import NAME_PATTERN


class PolynomialRecipe(BaseModel, frozen=True, extra="forbid"):
    """One polynomial study; the defaults are the full one."""

    name: str = Field("polynomial", pattern=NAME_PATTERN, description="Name of the flow run.")
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to compute.")
    evaluations: int = Field(20, ge=1, description="Test losses on the way, the last included.")
    samples: SamplesConfig = SamplesConfig()
    network: NetworkConfig = NetworkConfig()
    float_training: FloatTrainingConfig = FloatTrainingConfig()
    grid: GridConfig = GridConfig()
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="after")
    def _has_a_sample_for_every_place_of_a_batch(self) -> Self:
        for key, batch in (
            ("float_training.batch", self.float_training.batch),
            ("grid.batch", self.grid.batch),
        ):
            if batch > self.samples.train:
                raise ValueError(
                    f"{key} must be at most samples.train, {self.samples.train}; found {batch}"
                )
        return self


def load_polynomial_recipe(path: Path, overrides: list[str] | None = None) -> PolynomialRecipe:
    """Return the recipe of a YAML file with ``KEY=VALUE`` overrides applied.

    Raises:
        InputError: The file is missing or is not YAML, a key is unknown, a value is of the wrong
            type or out of range, or the device is not there.
    """
    return parse_polynomial_recipe(read_with_overrides(path, overrides))


def parse_polynomial_recipe(data: dict[str, Any]) -> PolynomialRecipe:
    """Return the validated recipe of plain data.

    Raises:
        InputError: As `load_polynomial_recipe`.
    """
    try:
        return PolynomialRecipe.model_validate(data)
    except ValidationError as error:
        raise InputError(sentences(error, PolynomialRecipe)) from error


def study_device(recipe: PolynomialRecipe) -> str:
    """Return the device to compute on: ``cpu`` or ``cuda:0``.

    Raises:
        InputError: The recipe asks for a GPU and torch sees none.
    """
    with keys_called({"model.device": "device"}):
        return resolve_device(recipe.device)
