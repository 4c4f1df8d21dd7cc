"""What codes that others have made, `base`, decide in the keys of the stages."""

import shutil

import pytest

from flows.recipes.quantize import Recipe
from normtweak_core.errors import InputError
from tests.flows.stage_keys import quantize_keys
from tests.flows.test_recipe_keys import with_values
from tests.flows.tiny_model import recipe_values, write_base


def test_another_content_of_base_redoes_what_is_made_from_it_and_another_place_nothing(
    project, tmp_path
):
    def keys_of(folder) -> dict[str, str]:
        return quantize_keys(Recipe.parse(with_values(project, {"base": str(folder)})))

    base = quantize_keys(Recipe.parse(recipe_values(project)))
    given = keys_of(project / "base")
    same = shutil.copytree(project / "base", tmp_path / "same")
    assert keys_of(same) == given
    other = write_base(tmp_path / "other", project / "model", sym=False, desc_act=True)
    changed_keys = keys_of(other)
    redone = {name for name in given if changed_keys[name] != given[name]}
    assert redone == {name for name in given if base[name] != given[name]}
    assert {name for name in given if name not in redone} == {"calibrate", "evaluate float"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"block_training.enabled": True},
            "block_training.enabled must be false with base, whose codes are kept; it is true, "
            "which rounds anew: set it to false, or leave base out.",
        ),
        (
            {"quantization.sweeps": 2},
            "quantization.sweeps is not read with base, whose codes are kept; found 2: remove it.",
        ),
    ],
)
def test_what_would_make_other_codes_is_refused_with_base(changes, sentence, project):
    values = with_values(project, {"base": "{0}/base"}, changes)
    with pytest.raises(InputError) as raised:
        Recipe.parse(values)
    assert raised.value.sentence == sentence


def test_the_grid_of_a_recipe_is_that_of_its_base(project):
    for changes in ({}, {"quantization.bits": 2}):
        recipe = Recipe.parse(with_values(project, {"base": "{0}/base"}, changes))
        assert "block 0" in quantize_keys(recipe)
    recipe = Recipe.parse(with_values(project, {"base": "{0}/base", "quantization.bits": 4}))
    with pytest.raises(InputError, match="bits must be that of base, 2; found 4: leave it out"):
        quantize_keys(recipe)
