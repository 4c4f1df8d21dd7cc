"""Every key of every recipe, as the page docs/recipes.md: `make docs` writes it.

    python -m flows.recipes.reference

Read from the JSON schemas of the recipes, which Prefect's forms are made of as well.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flows.recipes.kinds import RECIPES
from normtweak_core.settings import HINTS

INTRODUCTION = """\
# Recipes

<!-- Written by `make docs` from flows/recipes and the config.py files of the core. -->

A recipe is a YAML file that holds everything that decides what a run produces. `--set KEY=VALUE`
overrides a key, as in `--set quantization.bits=4`; what is left out has its default. A key that is
unknown, written twice or not read by its command is refused, with the nearest known one, before
anything heavy starts. Complete recipes stand in `conf/`.
"""
HEADER = "| key | default | values | meaning |\n|---|---|---|---|\n"
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
WORDS = {
    "boolean": "`true`, `false`",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "null": "`null`",
    "object": "keys and values",
}
Schema = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A section of a recipe; the empty name is that of the recipe's own keys."""

    name: str
    meaning: str
    keys: dict[str, tuple[str, str]]  # what may be written there, and what it means
    defaults: dict[str, str]


def reference() -> str:
    """Return the page: a chapter for each recipe, a table for each of its sections.

    A section that an earlier recipe has as well is told by a link, with the defaults that differ.
    """
    text = INTRODUCTION
    told: list[tuple[str, Section]] = []
    for command, recipe in RECIPES.items():
        schema = recipe.model_json_schema()
        own, *sections = _sections(schema, schema, "", {})
        text += f"\n## normtweak {command}\n\n{own.meaning}\n\n{_table(own)}"
        links = []
        for section in sections:
            earlier = next((one for one in told if one[1].keys == section.keys), None)
            if earlier is not None:
                links.append(_link(*earlier, section))
                continue
            told.append((command, section))
            text += f"\n### {command}: {section.name}\n\n{section.meaning}\n\n{_table(section)}"
        if links:
            text += f"\nAs above: {', '.join(links)}.\n"
    return text


def _table(section: Section) -> str:
    prefix = f"{section.name}." if section.name else ""
    return HEADER + "".join(
        f"| `{prefix}{key}` | {section.defaults[key]} | {values} | {meaning} |\n"
        for key, (values, meaning) in section.keys.items()
    )


def _link(command: str, earlier: Section, section: Section) -> str:
    anchor = f"{command}-{earlier.name}".replace(".", "")
    others = [
        f"{key} {default}"
        for key, default in section.defaults.items()
        if earlier.defaults[key] != default
    ]
    renamed = f" as `{section.name}`" if section.name != earlier.name else ""
    return f"[{earlier.name}](#{anchor}){renamed}" + (f" ({', '.join(others)})" if others else "")


def _sections(schema: Schema, root: Schema, name: str, given: Schema) -> Iterator[Section]:
    """Yield a section and those in it; ``given`` are the defaults that it is made with."""
    inner, keys, defaults = [], {}, {}
    for key, found in schema["properties"].items():
        if (below := _section(found, root)) is not None:
            inner.append((below, f"{name}.{key}".lstrip("."), found.get("default") or {}))
            continue
        if "oneOf" in found:  # a value, or a section in its place
            value, section = found["oneOf"][0], _section(found["oneOf"][1], root)
            meaning = found["description"]
            keys[key] = f"{_values(key, value)}, or the keys below", meaning
            defaults[key] = _code(given.get(key, found["default"]))
            for name_below, one in section["properties"].items():
                keys[f"{key}.{name_below}"] = _values(name_below, one), one["description"]
                defaults[f"{key}.{name_below}"] = (
                    _code(one["default"]) if "default" in one else "required"
                )
            continue
        keys[key] = _values(key, found), found["description"].replace("|", "or")
        default = given.get(key, found.get("default", "required"))
        defaults[key] = default if default == "required" else _code(default)
    yield Section(name, _first_paragraph(schema), keys, defaults)
    for below, full_name, values in inner:
        yield from _sections(below, root, full_name, values)


def _section(found: Schema, root: Schema) -> Schema | None:
    """Return the schema of a section, one that may be null included; None: it holds a value."""
    for choice in [found, *found.get("anyOf", [])]:
        if "$ref" in choice:
            return root["$defs"][choice["$ref"].rpartition("/")[2]]
    return None


def _values(key: str, found: Schema) -> str:
    """Return in words what may be written."""
    if "pattern" in found:
        return HINTS.get(key, HINTS["alias"])
    if "enum" in found:
        return ", ".join(map(_code, found["enum"]))
    if "const" in found:
        return _code(found["const"])
    if "anyOf" in found:
        return ", or ".join(_values(key, choice) for choice in found["anyOf"])
    bounds = " and ".join(
        f"{sign} {found[kind]:g}" for kind, sign in BOUNDS.items() if kind in found
    )
    match found["type"]:
        case "array":
            return f"a list of {_values(key, found['items'])}"
        case "object" if "propertyNames" in found:
            names, values = found["propertyNames"], found["additionalProperties"]
            return f"a mapping of {_values(key, names)} to {_values(key, values)}"
        case kind:
            return f"{WORDS[kind]} {bounds}".rstrip()


def _code(value: Any) -> str:
    return f"`{json.dumps(value)}`".replace('"', "")


def _first_paragraph(schema: Schema) -> str:
    return schema["description"].partition("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    sys.stdout.write(reference())
