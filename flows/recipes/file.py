"""The recipe as text: a YAML file, and ``KEY=VALUE`` pairs that change single keys of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from normtweak_core.errors import InputError
from normtweak_core.given_files import read_utf8
from normtweak_core.paths import shown

MOST_VALUES = 10_000  # of a recipe, each alias counted as what it stands for
MOST_SECTIONS = 8  # that one key lies in


class _Loader(yaml.SafeLoader):
    """Refuses a key that is written twice; YAML itself would silently take the last one."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return a value; one that Python cannot hold is an error of YAML, with its line."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a day that no month has, a number of 5,000 digits
            raise yaml.constructor.ConstructorError(
                problem=str(error).partition(";")[0], problem_mark=node.start_mark
            ) from error


def _mapping_of_unique_keys(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(
                problem="a key must be a word", problem_mark=key.start_mark
            )
        if key.value in seen:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {key.value} is written twice", problem_mark=key.start_mark
            )
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_of_unique_keys)


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the keys and values of a recipe file.

    Raises:
        InputError: The file is missing, cannot be read, or is no YAML mapping with unique keys.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"the recipe must be a YAML file; {path} {found}: check the path.")
    data = parse_yaml(read_utf8(path, "the recipe"), f"the recipe must be YAML; {path} is not")
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds {type(data).__name__}"
        raise InputError(
            f"the recipe must map keys to values; {path} {found}: write at least `name: ...`."
        )
    return data


def parse_yaml(text: str, refusal: str, remedy: str = "correct the file.") -> Any:
    """Return the value of a YAML text whose keys are unique.

    Args:
        text: The text.
        refusal: How the sentence begins about a text that is none.
        remedy: How it ends.

    Raises:
        InputError: It is no YAML, is nested too deeply, or stands for more values than a recipe
            has.
    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{refusal}{_reason(error)}: {remedy}") from error
    except RecursionError as error:
        raise InputError(f"{refusal}, it is nested too deeply: {remedy}") from error
    left, count = [value], 0
    while left:
        one = left.pop()
        count += 1
        if count > MOST_VALUES:
            raise InputError(
                f"{refusal}, with its aliases it holds more than {MOST_VALUES:,} values: write "
                "them out."
            )
        if isinstance(one, dict | list):
            left += one.values() if isinstance(one, dict) else one
    return value


def read_with_overrides(path: Path, overrides: list[str] | None) -> dict[str, Any]:
    """Return the keys and values of a recipe file after ``KEY=VALUE`` overrides.

    Raises:
        InputError: As `read_recipe` and `apply_override`.
    """
    data = read_recipe(path)
    for override in overrides or []:
        apply_override(data, override)
    return data


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one key of the recipe, such as ``quantization.bits=3``, in place.

    Raises:
        InputError: It is not KEY=VALUE, the value is no YAML, or the key leads into a value.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(
            f"--set takes KEY=VALUE, such as quantization.bits=3; found {shown(override)}."
        )
    *sections, leaf = key.split(".")
    if len(sections) > MOST_SECTIONS:
        raise InputError(f"--set must name a recipe key; found {shown(key)}.")
    value = parse_yaml(
        text, f"--set {key}: the value must be YAML; {shown(text)} is not", "correct it."
    )
    place = data
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(
                f"--set {key}: {section} must be a section of keys; found {shown(inner)}: correct "
                "the recipe or the key."
            )
        place = inner
    place[leaf] = value


def _reason(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f", character {error.position + 1}: {error.reason}"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ""
    line = error.problem_mark.line + 1
    return f", line {line}: {error.problem}" if error.problem else f", line {line}"


def recipe_yaml(recipe: BaseModel) -> str:
    """Return every value of a recipe as YAML, defaults included."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def recipe_sha256(recipe: BaseModel) -> str:
    """Return the hash of every value of a recipe, defaults included."""
    text = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
