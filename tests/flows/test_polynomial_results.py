"""No accepted value of a polynomial study is without effect on what it computes or where."""

import pytest

from flows.recipes.polynomial import PolynomialRecipe, study_device
from normtweak_core.errors import InputError
from normtweak_core.settings import known_keys
from tasks.engine.progress import Progress
from tests.flows.stage_bodies import TOLD, Bodies, first_difference
from tests.flows.test_polynomial import OTHER, TINY, changed
from tests.sampled import sampled

EFFECTS = {"name", "device"}  # of the last two tests


@pytest.fixture(scope="module")
def stored():
    return {}


def studied(recipe: PolynomialRecipe, bodies: Bodies):
    """Return what the stages of a study have made, by their bodies."""
    from flows.polynomial import POLYNOMIAL
    from tasks.stages.polynomial import PolynomialWork

    work = PolynomialWork(recipe, "cpu", progress=Progress(terminal=False))
    return POLYNOMIAL.walk(work, bodies.visit)


def bodies_of(stored: dict, known: dict | None = None) -> Bodies:
    # A report holds losses here, and nothing that the recipe says.
    return Bodies(stored, known, told=TOLD - {"report"})


def test_every_key_of_the_recipe_has_a_case():
    assert set(known_keys(PolynomialRecipe)) == {*OTHER, *EFFECTS}


@pytest.mark.parametrize("key", sampled(OTHER))
def test_a_leaf_of_a_study_changes_a_result(key, stored, engine_environment):
    base, other = PolynomialRecipe.parse(TINY), changed(key, OTHER[key])
    before = bodies_of(stored)
    studied(base, before)
    after = bodies_of(stored, before.effects)
    assert first_difference(after, lambda bodies: studied(other, bodies))


def test_the_device_decides_where_a_study_computes():
    import torch

    assert study_device(changed("device", "cpu")) == "cpu"
    if torch.cuda.is_available():
        assert study_device(changed("device", "cuda")) == "cuda:0"
    else:
        with pytest.raises(InputError, match=r"^device .*found cuda, and torch sees 0 "):
            study_device(changed("device", "cuda"))


def test_the_name_is_that_of_the_page_and_of_the_folder(stored, engine_environment):
    from flows.polynomial import study_of
    from flows.reports.html import to_html

    recipes = PolynomialRecipe.parse(TINY), changed("name", "other-study")
    studies = [study_of(recipe, studied(recipe, bodies_of(stored))) for recipe in recipes]
    assert len({study.folder for study in studies}) == 2
    for study in studies:
        page = to_html(study.report().document)
        assert [name in page for name in ("tiny-study", "other-study")] == [
            study.recipe.name == name for name in ("tiny-study", "other-study")
        ]
