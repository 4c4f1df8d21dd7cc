import pytest
import yaml

from flows.recipes.quantize import Recipe
from normtweak_core.errors import InputError


def load(tmp_path, text, *overrides) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return Recipe.load(path, list(overrides))


def refused(values) -> str:
    with pytest.raises(InputError) as error:
        Recipe.parse(values)
    return str(error.value)


def test_a_name_is_all_a_recipe_needs(tmp_path):
    assert load(tmp_path, "name: a").model_dump() == Recipe(name="a").model_dump()


def test_overrides_win_over_the_file_and_reach_any_depth(tmp_path):
    recipe = load(
        tmp_path,
        "name: a\nquantization: {bits: 4, symmetric: true}",
        "quantization.bits=3",
        "quantization.propagation.alpha=0.25",
        "calibration.languages=[latin, cjk]",
        "name=b",
        "seed=7",
        "seed=8",
    )
    assert (recipe.name, recipe.seed) == ("b", 8)
    assert (recipe.quantization.bits, recipe.quantization.symmetric) == (3, True)
    assert recipe.quantization.propagation.alpha == 0.25
    assert recipe.calibration.languages == ["latin", "cjk"]


def test_null_is_a_value(tmp_path):
    assert load(tmp_path, "name: a", "quantization.group_size=null").quantization.group_size is None


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001"])
def test_a_rate_may_be_written_in_any_usual_way(tmp_path, text):
    assert load(tmp_path, "name: a", f"norm_tweak.lr={text}").norm_tweak.lr == 1e-3


def test_a_value_where_a_section_is_needed_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--set model\.source: model must be a section of keys; "):
        load(tmp_path, "name: a\nmodel: llama", "model.source=x")


def test_a_value_that_is_no_yaml_is_named(tmp_path):
    with pytest.raises(InputError, match=r"name: the value must be YAML; '\[a' is not, line 1: "):
        load(tmp_path, "name: a", "name=[a")


def test_a_section_left_empty_is_named():
    assert refused({"name": "a", "model": None}) == (
        "model must be a section with keys such as source, revision, dtype, device; found None."
    )


def test_what_is_off_may_be_written_as_null():
    values = {
        "name": "a",
        "ternary": None,
        "finetune": None,
        "quantization": {"activation_bits": None},
        "evaluation": {"tasks": [], "data": None},
    }
    assert Recipe.parse(values) == Recipe(name="a")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "name is required; the recipe has none: add it."),
        (
            {"name": "a b"},
            "name must be letters, digits, dots, dashes and underscores, a letter or digit first; "
            "found 'a b'.",
        ),
        (
            {"name": "a", "calibration": {"languages": 3}},
            "calibration.languages must be auto, null or a list of scripts; found 3.",
        ),
        (
            {"name": "a", "calibration": {"source": "text"}},
            "calibration.path is required with source text; found none.",
        ),
        (
            {"name": "a", "norm_tweak": {"enabled": "perhaps"}},
            "norm_tweak.enabled must be true or false; found 'perhaps'.",
        ),
        (
            {"name": "a", "model": {"source": ""}},
            "model.source must be text that is not empty; found ''.",
        ),
        (
            {"name": "a", "calibration": {"length": 8.5}},
            "calibration.length must be a whole number; found 8.5.",
        ),
        (
            {"name": "a", "quantization": {"propagation": {"strength": 1}}},
            "quantization.propagation.strength is not a recipe key; known here: alpha, ridge, "
            "residual.",
        ),
    ],
)  # fmt: skip
def test_each_mistake_has_its_sentence(values, sentence):
    assert refused(values) == sentence


@pytest.mark.parametrize("path", ["quickstart.yaml"])
def test_the_shipped_recipes_are_accepted(path):
    from pathlib import Path

    folder = Path(__file__).parents[2] / "conf"
    recipe = Recipe.load(folder / path)
    assert Recipe.parse(yaml.safe_load((folder / path).read_text())) == recipe
