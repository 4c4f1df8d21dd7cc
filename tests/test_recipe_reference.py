"""docs/recipes.md: every key of every recipe, with the default and the values that really hold."""

import functools
import re
from pathlib import Path

import pytest
import yaml
from pydantic.json_schema import SkipJsonSchema

from flows.recipes.ablation import AblationRecipe
from flows.recipes.file import apply_override
from flows.recipes.finetune import FinetuneRecipe
from flows.recipes.polynomial import PolynomialRecipe
from flows.recipes.quantize import Recipe
from flows.recipes.reference import RECIPES, reference
from flows.recipes.ternary import TernaryRecipe
from normtweak_core.errors import InputError
from normtweak_core.settings import known_keys, section_model

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
PARSERS = {
    "quantize": Recipe.parse,
    "ternary": TernaryRecipe.parse,
    "finetune": FinetuneRecipe.parse,
    "ablate": AblationRecipe.parse,
    "polynomial": PolynomialRecipe.parse,
}
ROW = re.compile(r"^\| `(\S+)` \| (.+?) \| (.+?) \| (.+) \|$", re.MULTILINE)
BOUND = re.compile(r"([≥>≤<]) ([0-9.]+)")


@functools.cache
def chapter(command):
    """Return default, values and meaning by key, of the keys that a chapter tells itself."""
    text = reference().split(f"\n## normtweak {command}\n")[1].partition("\n## ")[0]
    return {key: (default.strip("`"), *rest) for key, default, *rest in ROW.findall(text)}


def least(command):
    """Return the smallest recipe of a command."""
    required = {"finetune": {"name": "x", "model": {"source": "/an/export"}}, "polynomial": {}}
    return required.get(command, {"name": "x"})


def hidden(model, prefix=""):
    """Return the keys that hold null and nothing else, so that no form shows them."""
    for name, field in model.model_fields.items():
        if (section := section_model(model, name)) is not None:
            yield from hidden(section, f"{prefix}{name}.")
        elif any(isinstance(one, SkipJsonSchema) for one in field.metadata):
            yield prefix + name


def test_the_page_is_what_the_models_say():
    assert PAGE.read_text() == reference(), "run `make docs`"


@pytest.mark.parametrize("command", RECIPES)
def test_every_key_of_a_recipe_is_told_or_linked(command):
    text = reference().split(f"\n## normtweak {command}\n")[1].partition("\n## ")[0]
    linked = re.findall(r"\[(\S+)\]\(#\S+?\)(?: as `(\S+)`)?", text.partition("As above: ")[2])
    sections = {renamed or name for name, renamed in linked}
    told = chapter(command).keys()
    keys = set(known_keys(RECIPES[command])) - set(hidden(RECIPES[command]))
    # Of a section that may stand in the place of a value the value is a key as well.
    sections |= {key for key in keys - told if key.rpartition(".")[0] in sections}
    assert told <= keys
    assert {key for key in keys - told if key.rpartition(".")[0] not in sections} == set()


@pytest.mark.parametrize("command", RECIPES)
def test_links_lead_to_headings(command):
    text = reference()
    headings = re.findall(r"^### (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\(#(\S+?)\)", text)) <= anchors


@pytest.mark.parametrize("command", RECIPES)
def test_every_key_has_a_meaning_and_every_section_says_what_it_is(command):
    def without(model):
        for name, field in model.model_fields.items():
            section = section_model(model, name)
            if section is not None:
                yield from [name] * (not section.__doc__)
                yield from without(section)
            elif not field.description and name not in ("ternary", "finetune"):
                yield name

    assert list(without(RECIPES[command])) == []


@pytest.mark.parametrize("command", RECIPES)
def test_the_defaults_told_are_those_a_recipe_gets(command):
    given = least(command) | ({"finetune": {"lora": {}}} if command == "finetune" else {})
    recipe = PARSERS[command](given).model_dump(mode="json")
    for key, (default, _, _) in chapter(command).items():
        found = recipe
        for part in key.split("."):
            # None: a value stands in the place of a section, or what is off is left out.
            found = found.get(part) if isinstance(found, dict) else None
        if default != "required" and found is not None:
            assert yaml.safe_load(default) == found, key


@pytest.mark.parametrize("command", RECIPES)
def test_what_lies_outside_the_bounds_told_is_refused(command):
    bounds = {
        (key, sign, float(limit))
        for key, (_, values, _) in chapter(command).items()
        for sign, limit in BOUND.findall(values)
        if "mapping" not in values
    }
    assert bounds or command == "ablate"
    for key, sign, limit in bounds:
        outside = {"≥": limit - 1, ">": limit, "≤": limit + 1, "<": limit}[sign]
        value = [outside] if "list of" in chapter(command)[key][1] else outside
        data = least(command)
        apply_override(data, f"{key}={yaml.safe_dump(value, default_flow_style=True).split()[0]}")
        with pytest.raises(InputError, match=re.escape(key.rpartition(".")[2])):
            PARSERS[command](data)


def test_a_section_that_differs_in_defaults_alone_is_told_by_what_differs():
    told = "[ternary.data](#ternary-ternarydata) as `finetune.data` (samples `1024`)"
    assert told in reference()


def test_choices_lists_and_mappings_are_told_in_words():
    told = chapter("quantize") | chapter("ablate")
    assert told["quantization.bits"][:2] == ("2", "`2`, `3`, `4`, `8`, or the keys below")
    assert told["quantization.bits.average"][:2] == ("required", "a number > 0")
    assert told["quantization.group_size"][:2] == ("64", "a whole number ≥ 1, or `null`")
    assert told["calibration.languages"][1] == "`auto`, or a list of text, or `null`"
    assert told["gate.max_accuracy_drop"][1].endswith("`boolq` to a number > 0 and ≤ 1")
    assert told["export.format"][1] == "`auto`, `compressed-tensors`, `gptq`, `gguf`"
    assert told["name"][0] == "required"
