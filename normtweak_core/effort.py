"""How much work is put into a quantization: levels, each of which sets some keys of a recipe."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

Effort = Literal["fast", "standard", "best", "long"]
# What a level sets, by full key; `standard` is what the defaults say. docs/results.md has the
# studies that they were chosen by.
EFFORTS: dict[str, dict[str, Any]] = {
    "fast": {
        "quantization.exponents": [3.0],
        "quantization.sweeps": 0,
        "norm_tweak.enabled": False,
        "final_tune.enabled": False,
    },
    "standard": {},
    "best": {
        "block_training.enabled": True,
        "block_training.steps": 100,
        "block_training.lr": 1e-2,
        "final_tune.steps": 400,
    },
    "long": {
        "block_training.enabled": True,
        "block_training.steps": 1000,
        "final_tune.steps": 2000,
    },
}


class WithEffort(BaseModel, frozen=True):
    """Settings of a quantization whose left-out keys follow from an effort."""

    effort: Effort = Field(
        "standard",
        description="What the keys below are where they are left out: fast is GPTQ with error "
        "propagation alone; standard adds its search and sweeps, the norm tweak and the final "
        "tune; best trains each block as well; long does so with more steps.",
    )

    @model_validator(mode="before")
    @classmethod
    def _left_out_keys_follow(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        effort = data.get("effort", "standard")
        filled = dict(data)
        # What is no effort, or no section, is refused by the fields themselves.
        for key, value in (EFFORTS.get(effort, {}) if isinstance(effort, str) else {}).items():
            section, leaf = key.split(".")
            given = filled.get(section, {})
            if isinstance(given, BaseModel):
                given = given.model_dump(exclude_unset=True)
            if isinstance(given, Mapping):
                filled[section] = {leaf: value, **given}
        return filled

    def beside_effort(self) -> list[str]:
        """Return the keys that the recipe itself has set to something else than its effort does."""
        return [
            key
            for key, value in EFFORTS[self.effort].items()
            if _plain(getattr(getattr(self, key.split(".")[0]), key.split(".")[1])) != value
        ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
