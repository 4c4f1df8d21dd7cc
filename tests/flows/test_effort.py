"""What an effort sets where a recipe leaves keys out, and what it leaves alone."""

import pytest

from flows.recipes.quantize import Recipe
from normtweak_core.effort import EFFORTS
from normtweak_core.library.settings import Settings
from normtweak_core.settings import known_keys
from normtweak_core.tweak.config import NormTweakConfig


def value_of(settings, key):
    for part in key.split("."):
        settings = getattr(settings, part, None)  # of a section, where a value stands
    return list(settings) if isinstance(settings, tuple) else settings


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("kind", [Recipe, Settings])
def test_keys_that_are_left_out_follow_from_the_effort(kind, effort):
    name = {"name": "a"} if kind is Recipe else {}
    settings, standard = (kind.model_validate(name | {"effort": e}) for e in (effort, "standard"))
    for key in set(known_keys(kind)) - {"effort"}:
        wanted = EFFORTS[effort].get(key, value_of(standard, key))
        assert value_of(settings, key) == wanted, key
    assert settings.beside_effort() == []


def test_levels_differ_in_what_a_block_and_the_end_cost():
    fast, standard, best, long = (Settings(effort=effort) for effort in EFFORTS)
    assert not fast.norm_tweak.enabled
    assert not fast.final_tune.enabled
    assert standard.norm_tweak.enabled
    assert standard.final_tune.enabled
    assert [one.block_training.enabled for one in (fast, standard, best, long)] == [0, 0, 1, 1]
    assert best.block_training.steps < long.block_training.steps


def test_a_key_of_the_recipe_itself_comes_first_and_is_named():
    recipe = Recipe.parse(
        {"name": "a", "effort": "fast", "norm_tweak": {"enabled": True, "lr": 0.5}}
    )
    assert recipe.norm_tweak == NormTweakConfig(enabled=True, lr=0.5)
    assert not recipe.final_tune.enabled
    assert recipe.beside_effort() == ["norm_tweak.enabled"]


def test_a_section_given_as_an_object_counts_what_was_set_in_it():
    settings = Settings(effort="fast", norm_tweak=NormTweakConfig(lr=0.5))
    assert settings.norm_tweak == NormTweakConfig(enabled=False, lr=0.5)
    settings = Settings(effort="fast", norm_tweak=NormTweakConfig(enabled=True))
    assert settings.norm_tweak.enabled


@pytest.mark.parametrize("effort", EFFORTS)
def test_a_recipe_that_was_written_out_is_the_same_again(effort):
    recipe = Recipe.parse({"name": "a", "effort": effort})
    assert Recipe.parse(recipe.model_dump(mode="json")) == recipe
    assert Recipe.model_validate(recipe) == recipe
