"""A model and a few options mean the recipe that is printed, and kept where asked for."""

import pytest
import yaml

from flows.cli import parse
from flows.commands.meant import meant_recipe
from flows.recipes.quantize import Recipe
from normtweak_core.errors import InputError


def meant(*arguments):
    return meant_recipe(parse(["quantize", *map(str, arguments)]))


def test_options_of_a_model_mean_these_keys_and_the_file_means_the_same(tmp_path):
    file = tmp_path / "my.yaml"
    options = ["--bits", "4", "--group-size", "64", "--effort", "best", "--calibration", "a.txt"]
    options += ["--set", "seed=7", "--save-recipe", file]
    values, text = meant("models/Some Model/", *options)
    assert values == {
        "name": "Some-Model-w4g64",
        "model": {"source": "models/Some Model/"},
        "quantization": {"bits": 4, "group_size": 64},
        "effort": "best",
        "calibration": {"source": "text", "path": "a.txt"},
        "seed": 7,
    }
    assert Recipe.parse(values).block_training.enabled
    assert file.read_text() == text
    assert meant(file) == (values, None)
    assert meant("models/Some Model/", *options)[1] == text  # the same again is no mistake


@pytest.mark.parametrize(
    ("model", "options", "name", "quantization"),
    [
        ("owner/Name-1.5B", ["--bits", "3"], "Name-1.5B-w3", {"bits": 3}),
        ("reference:llama", ["--bits", "2.5"], "llama-w2.5", {"bits": {"average": 2.5}}),
        ("/m", ["--bits", "8", "--group-size", "channel"], "m-w8channel",
         {"bits": 8, "group_size": None}),
        ("../.hidden", ["--bits", "4.0"], "hidden-w4.0", {"bits": 4.0}),
        ("..", ["--bits", "4"], "w4", {"bits": 4}),
    ],
)  # fmt: skip
def test_what_is_left_out_is_left_to_the_defaults(model, options, name, quantization):
    values, text = meant(model, *options)
    assert values == {"name": name, "model": {"source": model}, "quantization": quantization}
    assert yaml.safe_load(text) == values
    Recipe.parse(values)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["m", "--group-size", "64"],
         "--group-size is read where --bits names a width for a model; found none: add --bits, or "
         "change the recipe with --set KEY=VALUE."),
        (["r.yaml", "--bits", "3"],
         "--bits is for a model without a recipe; found the recipe 'r.yaml': change it with --set "
         "quantization.bits=3."),
        (["org/name"],
         "the recipe must be a YAML file; 'org/name' is none: check the path, or say the width "
         "that a model is to have, such as `normtweak quantize org/name --bits 4`."),
        (["m", "--bits", "["],
         "--bits must be a number; '[' is none, line 1: expected the node content, but found "
         "'<stream end>': correct it."),
        (["m", "--bits", "4", "--save-recipe", "{0}"],
         "--save-recipe must name a new file; {0} holds something else: name another."),
        (["m", "--bits", "4", "--save-recipe", "{0}/taken"],
         "--save-recipe must name a new file; {0}/taken holds something else: name another."),
        (["m", "--bits", "4", "--save-recipe", "{0}/absent/r.yaml"],
         "--save-recipe must lie in a folder that is there; {0}/absent is none: make it."),
    ],
)  # fmt: skip
def test_what_means_no_recipe_is_told(arguments, answer, tmp_path):
    (tmp_path / "taken").write_text("name: other\n")
    with pytest.raises(InputError) as refused:
        meant(*(text.format(tmp_path) for text in arguments))
    assert str(refused.value) == answer.format(tmp_path)


@pytest.mark.parametrize("bits", ["5", "four", "-2", "2.5e9", "null", ".nan", "true"])
def test_a_width_that_is_none_is_refused_by_the_recipe(bits):
    values, _ = meant("m", "--bits", bits)
    with pytest.raises(InputError, match=r"quantization\.bits"):
        Recipe.parse(values)
