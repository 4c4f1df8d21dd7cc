"""No accepted value of a polynomial study is without effect on what it computes or where."""

import time

import pytest

from flows.recipes.polynomial import PolynomialRecipe, study_device
from normtweak_core.errors import InputError
from normtweak_core.settings import known_keys
from tests.flows.stage_bodies import TOLD, Bodies, first_difference
from tests.flows.test_polynomial import OTHER, TINY, changed

EFFECTS = {"name", "device"}  # of the last two tests


@pytest.fixture(scope="module")
def stored():
    return {}


def run_of(recipe: PolynomialRecipe, stored: dict, known: dict | None = None) -> Bodies:
    from tasks.stages.polynomial import PolynomialJob

    job = PolynomialJob(recipe.samples, recipe.network, recipe.seed, recipe.evaluations, "cpu")
    # A report holds losses here, and nothing that the recipe says.
    told = TOLD - {"report"}
    return Bodies(time.monotonic(), job=job, stored=stored, known=known, told=told)


def test_every_key_of_the_recipe_has_a_case():
    assert set(known_keys(PolynomialRecipe)) == {*OTHER, *EFFECTS}


@pytest.mark.parametrize("key", OTHER)
def test_a_leaf_of_a_study_changes_a_result(key, stored, engine_environment, monkeypatch):
    from flows.polynomial import train_study

    monkeypatch.setattr("flows.polynomial.show_cells", lambda study: None)
    base, other = PolynomialRecipe.parse(TINY), changed(key, OTHER[key])
    before = run_of(base, stored)
    train_study(before, base)
    after = run_of(other, stored, before.effects)
    assert first_difference(after, lambda run: train_study(run, other))


def test_the_device_decides_where_a_study_computes():
    import torch

    assert study_device(changed("device", "cpu")) == "cpu"
    if torch.cuda.is_available():
        assert study_device(changed("device", "cuda")) == "cuda:0"
    else:
        with pytest.raises(InputError, match=r"^device .*found cuda, and torch sees 0 "):
            study_device(changed("device", "cuda"))


def test_the_name_is_that_of_the_page_and_of_the_folder(stored, engine_environment, monkeypatch):
    from flows.polynomial import train_study
    from flows.reports.html import to_html

    monkeypatch.setattr("flows.polynomial.show_cells", lambda study: None)
    recipes = PolynomialRecipe.parse(TINY), changed("name", "other-study")
    studies = [train_study(run_of(recipe, stored), recipe)[0] for recipe in recipes]
    assert len({study.folder for study in studies}) == 2
    for study in studies:
        page = to_html(study.report().document)
        assert [name in page for name in ("tiny-study", "other-study")] == [
            study.recipe.name == name for name in ("tiny-study", "other-study")
        ]
