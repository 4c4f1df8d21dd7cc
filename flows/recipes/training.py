"""What the recipes of trainings have in common: how plain data becomes a validated recipe."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from flows.recipes.errors import sentences
from flows.recipes.quantize import refuse_infinite, refuse_unbuilt
from normtweak_core.errors import InputError

RecipeOfTraining = TypeVar("RecipeOfTraining", bound=BaseModel)


def parse_training_recipe(
    data: dict[str, Any], recipe: type[RecipeOfTraining], section: str, not_read: tuple[str, ...]
) -> RecipeOfTraining:
    """Return the validated recipe of plain data.

    Args:
        data: Plain data.
        recipe: The model of the recipe.
        section: Its own section, which is also the name of its command.
        not_read: Sections of other recipes that it has no use for.

    Raises:
        InputError: A key is unknown, not built yet or not read here, or a value is of the wrong
            type or out of range.
    """
    for other in not_read:
        if other in data:
            raise InputError(
                f"{other} is not read by normtweak {section}, whose training has its own section "
                f"({section}, with {section}.data for the text): remove it."
            )
    refuse_unbuilt(data)
    refuse_infinite(data)
    try:
        return recipe.model_validate(data)
    except ValidationError as error:
        raise InputError(sentences(error, recipe)) from error
