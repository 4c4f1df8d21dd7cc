"""The recipe as text: a YAML file, and ``KEY=VALUE`` pairs that change single keys of it."""

from pathlib import Path
from typing import Any

import yaml

from normtweak_core.errors import InputError


class _Loader(yaml.SafeLoader):
    """Refuses a key that is written twice; YAML itself would silently take the last one."""


def _mapping_of_unique_keys(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
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
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise InputError(
            f"the recipe must be UTF-8 text; byte {error.start} of {path} is not: convert the file."
        ) from error
    except OSError as error:
        raise InputError(
            f"the recipe must be readable; {path} is not: {error.strerror}."
        ) from error
    except yaml.YAMLError as error:
        raise InputError(
            f"the recipe must be YAML; {path} is not{_reason(error)}: correct the file."
        ) from error
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds {type(data).__name__}"
        raise InputError(
            f"the recipe must map keys to values; {path} {found}: write at least `name: ...`."
        )
    return data


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
        raise InputError(f"--set takes KEY=VALUE, such as quantization.bits=3; found {override!r}.")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"--set {key}: the value must be YAML; found {text!r}.") from error
    *sections, leaf = key.split(".")
    place = data
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(
                f"--set {key}: {section} must be a section of keys; found {inner!r}: correct the "
                "recipe or the key."
            )
        place = inner
    place[leaf] = value


def _reason(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ""
    line = error.problem_mark.line + 1
    return f", line {line}: {error.problem}" if error.problem else f", line {line}"
