"""What recipes have in common: how plain data becomes one, and how its version is registered."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from flows.recipes.file import read_with_overrides
from normtweak_core.errors import InputError
from normtweak_core.evaluate.gate import require_measured
from normtweak_core.settings import sentences
from tasks.registry.names import ALIAS_PATTERN, NAME_PATTERN, is_reserved_alias


class Request(BaseModel, frozen=True, extra="forbid"):
    """What a person asks of a command, validated."""

    NAMES: ClassVar[Mapping[str, str]] = {}  # what the person calls a key, where it is another name

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        """Return the validated request of plain data.

        Raises:
            InputError: A key is unknown, not built yet or not read here, a value is of the wrong
                type or out of range, or values do not go together.
        """
        cls.refuse(data)
        refuse_infinite(data)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(sentences(error, cls, cls.NAMES)) from error

    @classmethod
    def refuse(cls, data: dict[str, Any]) -> None:
        """Refuse plain data that is meant for something else, in a sentence of its own.

        Raises:
            InputError: It is.
        """


class BaseRecipe(Request, frozen=True, extra="forbid"):
    """A recipe: everything that decides what a run produces."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the registered model.")
    seed: int = Field(0, ge=0, description="Seed of everything random.")

    @classmethod
    def load(cls, path: Path, overrides: list[str] | None = None) -> Self:
        """Return the recipe of a YAML file with ``KEY=VALUE`` overrides applied.

        Raises:
            InputError: The file is missing or is not YAML, or as `parse`.
        """
        return cls.parse(read_with_overrides(path, overrides))


class RegistryConfig(BaseModel, frozen=True, extra="forbid"):
    """The registered version. Aliases move only to one that passes the gate."""

    alias: str = Field("candidate", pattern=ALIAS_PATTERN, description="Alias the version takes.")
    promote_to: str | None = Field(
        "champion",
        pattern=ALIAS_PATTERN,
        description="Alias it takes as well, if it passes the gate and is shown to be no worse "
        "than what has it; null: none.",
    )

    @field_validator("alias", "promote_to")
    @classmethod
    def _is_not_reserved(cls, alias: str | None, info: ValidationInfo) -> str | None:
        if alias is not None and is_reserved_alias(alias):
            raise ValueError(
                f"registry.{info.field_name} must be neither latest nor v and a number, which "
                f"MLflow keeps for itself; found {alias!r}"
            )
        return alias


class RegisteredRecipe(BaseRecipe, frozen=True, extra="forbid"):
    """A recipe that ends in a registered version: it has `evaluation`, `gate` and `registry`."""

    @model_validator(mode="after")
    def _gate_asks_for_what_is_measured(self) -> Self:
        require_measured(self.gate, self.evaluation)
        return self


def changed(recipe: Any, values: dict[str, Any]) -> Any:
    """Return a recipe with other values, by full key.

    Raises:
        InputError: No recipe of its kind holds them together.
    """
    data = recipe.model_dump(mode="json")
    for key, value in values.items():
        put(data, key, value)
    return type(recipe).parse(data)


def put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a full key, whose sections are there, in place."""
    *sections, leaf = key.split(".")
    for section in sections:
        data = data[section]
    data[leaf] = value


def refuse_unread(data: dict[str, Any], unread: tuple[str, ...], section: str) -> None:
    """Refuse sections of other recipes in that of a training.

    Raises:
        InputError: There is one.
    """
    for other in unread:
        if other in data:
            raise InputError(
                f"{other} is not read by normtweak {section}, whose training has its own section "
                f"({section}, with {section}.data for the text): remove it."
            )


def refuse_infinite(value: Any, key: str = "") -> None:
    """Refuse numbers that are NaN or infinite.

    Raises:
        InputError: There is one; the message names its key.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            refuse_infinite(inner, f"{key}.{name}" if key else str(name))
    if isinstance(value, list):
        for inner in value:
            refuse_infinite(inner, key)
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{key} must be a finite number; found {value}.")


def looked_up(data: Any, key: str, default: Any) -> Any:
    """Return the value of a full key in plain data, or the default where there is none."""
    for part in key.split("."):
        if not isinstance(data, dict) or part not in data:
            return default
        data = data[part]
    return data
