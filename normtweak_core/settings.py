"""What is wrong with a recipe, in sentences: which key, what it must be, what was found."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from normtweak_core.distributed.config import MOST
from normtweak_core.errors import InputError, called
from normtweak_core.paths import shown

KINDS = ("width", "mixed")  # the tags of keys that hold a value or a section
SHOWN = 2  # problems told at once

# What a key means, in whichever section, where its type alone does not say what to write.
HINTS = {
    "name": "letters, digits, dots, dashes and underscores, a letter or digit first",
    "alias": "letters, digits, dashes and underscores",
    "languages": "auto, null or a list of scripts",
    "memory": "a number of bytes, such as 2GiB",
    "devices": f"auto or a number of processes from 1 to {MOST}",
    "disk": "a number of bytes, such as 50GB",
    "exponents": "a list of one to eight numbers from 1 to 16",
    "choose_from": "a list of two or more of the widths 2, 3, 4 and 8",
    "group_size": "a number of columns of at least 1, or null for whole rows",
}
REQUIRED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "list_type": "a list",
    "none_required": "null",
}


def sentences(
    error: ValidationError, recipe: type[BaseModel], names: Mapping[str, str] | None = None
) -> str:
    """Return one sentence for each of the first problems, and how many more there are.

    Args:
        error: What pydantic has found.
        recipe: The model it has validated.
        names: What keys are called by the person, where that is not their name in the model.
    """
    told: dict[str, str] = {}
    for detail in error.errors():
        key, model = _place(detail, recipe)
        told.setdefault(key, _sentence(detail, key, model, recipe, names or {}))
    first = " ".join(list(told.values())[:SHOWN])
    return first + (f" ({len(told) - SHOWN} more.)" if len(told) > SHOWN else "")


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the full name of every value a recipe holds; sections are followed, not named."""
    for name in model.model_fields:
        section = section_model(model, name)
        if section is None or _holds_values(model, name):
            yield prefix + name
        if section is not None:
            yield from known_keys(section, f"{prefix}{name}.")


def section_model(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model of a section, or None where the name holds a value."""
    candidates = _types(model.model_fields[name].annotation)
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _types(annotation: Any) -> Iterator[Any]:
    """Yield the types of a key, those of which one is chosen included."""
    yield annotation
    for inner in get_args(annotation):
        yield from _types(inner)


def _holds_values(model: type[BaseModel], name: str) -> bool:
    """Say whether a key holds a value, or a section in its place."""
    return any(get_origin(one) is Literal for one in _types(model.model_fields[name].annotation))


def _place(detail: ErrorDetails, recipe: type[BaseModel]) -> tuple[str, type[BaseModel] | None]:
    """Return the key an error is about and the model of its section; None: it is not a key."""
    model: type[BaseModel] | None = recipe
    parts: list[str] = []
    for part in detail["loc"]:
        # Behind a value pydantic goes on with the branches of its type; they say nothing here.
        if model is None:
            break
        if part in KINDS:  # which of a value and a section it was taken for
            continue
        parts.append(str(part))
        if part not in model.model_fields:
            return ".".join(parts), model
        model = section_model(model, str(part))
    return ".".join(parts), model


def _sentence(
    detail: ErrorDetails,
    key: str,
    model: type[BaseModel] | None,
    recipe: type[BaseModel],
    names: Mapping[str, str],
) -> str:
    found, kind = shown(detail.get("input")), detail["type"]
    if kind in ("extra_forbidden", "invalid_key"):
        return _unknown(key, model or recipe, recipe)
    if kind == "value_error":
        return _told_by_the_section(detail["ctx"]["error"], key, model, names)
    key = called(key, names)
    if kind == "missing":
        return f"{key} is required; the recipe has none: add it."
    if kind == "model_type":
        keys = ", ".join(model.model_fields) if model else ""
        return f"{key} must be a section with keys such as {keys}; found {found}."
    return f"{key} must be {_requirement(detail, key)}; found {found}."


def _told_by_the_section(
    error: ValueError, place: str, model: type[BaseModel] | None, names: Mapping[str, str]
) -> str:
    """Return the sentence of a model's own check, whose keys are those of its section."""
    if not isinstance(error, InputError):
        error = InputError(str(error))
    elif error.key:
        # What a check of one key raises has its place; one of a whole section, that of the section.
        error.key = called(place if model is None else f"{place}.{error.key}".lstrip("."), names)
    return error.sentence


def _requirement(detail: ErrorDetails, key: str) -> str:
    if (hint := HINTS.get(key.rpartition(".")[2])) is not None:
        return hint
    if detail["type"] in REQUIRED:
        return REQUIRED[detail["type"]]
    text = detail["msg"].removeprefix("Input should be ")
    return (
        text.replace("'", "")
        .replace("greater than or equal to", "at least")
        .replace("less than or equal to", "at most")
    )


def _unknown(key: str, model: type[BaseModel], recipe: type[BaseModel]) -> str:
    section, _, leaf = key.rpartition(".")
    prefix = f"{section}." if section else ""
    here = list(model.model_fields)
    near = [prefix + name for name in difflib.get_close_matches(leaf, here, n=1, cutoff=0.5)]
    # A key in the wrong section is more often meant than another key spelled quite like it.
    elsewhere = [name for name in known_keys(recipe) if name.rpartition(".")[2] == leaf]
    if guess := elsewhere or near:
        return f"{key} is not a recipe key; did you mean {guess[0]}?"
    return f"{key} is not a recipe key; known here: {', '.join(here)}."
