"""The recipe of the polynomial study, read and checked as the main recipe is."""

from typing import Literal, Self

from pydantic import Field, model_validator

from flows.recipes.base import BaseRecipe
from normtweak_core.errors import keys_called
from normtweak_core.model.source import resolve_device
from normtweak_core.polynomial.config import (
    FloatTrainingConfig,
    GridConfig,
    LoraConfig,
    NetworkConfig,
    SamplesConfig,
)
from tasks.registry.names import NAME_PATTERN


class PolynomialRecipe(BaseRecipe, frozen=True, extra="forbid"):
    """One polynomial study; the defaults are the full one."""

    name: str = Field("polynomial", pattern=NAME_PATTERN, description="Name of the flow run.")
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


def study_device(recipe: PolynomialRecipe) -> str:
    """Return the device to compute on: ``cpu`` or ``cuda:0``.

    Raises:
        InputError: The recipe asks for a GPU and torch sees none.
    """
    with keys_called({"model.device": "device"}):
        return resolve_device(recipe.device)
