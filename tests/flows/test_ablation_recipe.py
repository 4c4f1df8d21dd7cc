"""The recipe of an ablation: which cells it plans, and what is known before they run."""

import copy
from pathlib import Path

import pytest

from flows.checks.ablation import preflight
from flows.recipes.ablation import AblationRecipe, planned_cells
from flows.recipes.quantize import Recipe
from normtweak_core.ablation.config import STUDIES, StudiesConfig
from normtweak_core.settings import known_keys
from tests.flows.tiny_model import ablation_values, write_project

REPOSITORY = Path(__file__).parents[2]
LEFT_OUT = {study: [] for study in STUDIES}


@pytest.fixture(scope="module")
def values(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("planned")
    write_project(folder)
    found = ablation_values(folder)
    calibration = {"source": "random", "samples": 8, "length": 16}
    return found | {"seed": 3, "calibration": calibration}


@pytest.fixture(scope="module")
def recipe(values) -> AblationRecipe:
    return AblationRecipe.parse(copy.deepcopy(values))


# Another accepted value of each key of an ablation that has all studies.
OTHER = {
    "ablation.text": "another.txt",
    "ablation.studies.calibration": ["text", "random"],
    "ablation.studies.loss": ["kl", "mse"],
    "ablation.studies.target": [],
    "ablation.studies.stage": ["rtn", "gptq"],
    "ablation.studies.schedule": ["step", "cosine"],
    "ablation.studies.iterations": [3, 2],
    "ablation.studies.bits": ["ternary", 1],
} | {f"ablation.seeds.{study}": 4 for study in STUDIES}


def changed(values: dict, key: str, value: object) -> AblationRecipe:
    data = copy.deepcopy(values)
    *sections, leaf = key.split(".")
    place = data
    for section in sections:
        place = place.setdefault(section, {})
    place[leaf] = value
    return AblationRecipe.parse(data)


def planned(recipe: AblationRecipe) -> list[Recipe]:
    return [cell.recipe for cell in planned_cells(recipe, "training.jsonl")]


def test_every_key_is_one_of_the_base_or_changes_the_cells(values):
    own = {key for key in known_keys(AblationRecipe) if key.startswith("ablation.")}
    assert own == set(OTHER)
    assert set(known_keys(AblationRecipe)) - own <= set(known_keys(Recipe))
    full = values | {"ablation": {}}
    before = planned(AblationRecipe.parse(full))
    for key, value in OTHER.items():
        assert planned(changed(full, key, value)) != before, key


def test_a_key_of_the_base_reaches_every_cell_that_does_not_vary_it(values):
    cells = planned(changed(values, "norm_tweak.lr", 0.5))
    assert {cell.norm_tweak.lr for cell in cells} == {0.5}
    for number, cell in enumerate(planned_cells(changed(values, "norm_tweak.loss", "kl"), "")):
        expected = cell.value if cell.study == "loss" else "kl"
        assert cell.recipe.norm_tweak.loss == expected, number


def test_cells_are_the_base_and_then_every_value_with_every_seed(values):
    cells = planned_cells(changed(values, "ablation.seeds.stage", 2), "")
    assert [(cell.study, cell.value, cell.recipe.seed) for cell in cells] == [
        ("base", "base", 3), ("base", "base", 4), ("base", "base", 5),
        ("loss", "channel", 3), ("loss", "channel", 4), ("loss", "channel", 5),
        ("loss", "mse", 3), ("loss", "mse", 4), ("loss", "mse", 5),
        ("stage", "rtn", 3), ("stage", "rtn", 4), ("stage", "gptq", 3), ("stage", "gptq", 4),
    ]  # fmt: skip
    assert cells[0].recipe == cells[3].recipe != cells[6].recipe
    assert [cells[number].name for number in (0, 7, 10)] == [
        "base, seed 3", "loss mse, seed 4", "stage RTN, seed 4",
    ]  # fmt: skip


def test_the_text_of_the_study_is_the_named_one_that_of_the_base_or_the_training_text(values):
    def texts(**calibration) -> set[str | None]:
        data = copy.deepcopy(values)
        data["ablation"]["studies"] = LEFT_OUT | {"calibration": ["text", "random"]}
        data["ablation"]["seeds"] = {}
        data["calibration"] |= calibration
        recipes = [AblationRecipe.parse(data)]
        data["ablation"]["text"] = "named.txt"
        recipes.append(AblationRecipe.parse(data))
        return [
            {cell.calibration.path for cell in planned(one)[3:] if cell.calibration.path}
            for one in recipes
        ]

    assert texts() == [{"training.jsonl"}, {"named.txt"}]
    assert texts(source="text", path="base.txt") == [{"base.txt"}, {"named.txt"}]


def test_the_full_ablation_has_every_study_and_its_stated_base():
    recipe = AblationRecipe.load(REPOSITORY / "conf/ablation.yaml")
    assert recipe.ablation.studies == StudiesConfig()
    assert (recipe.quantization.bits, recipe.calibration.samples, recipe.calibration.length) == (
        2, 64, 256,
    )  # fmt: skip
    cells = planned_cells(recipe, "training.jsonl")
    assert len(cells) == 3 + 3 * (4 + 3 + 5) + 2 + 5 + 4 + 6
    assert len({cell.recipe.model_dump_json() for cell in cells}) == 43
    small = AblationRecipe.load(REPOSITORY / "conf/ablation-small.yaml", ["seed=3"])
    assert small.seed == 3
    assert len({cell.recipe.model_dump_json() for cell in planned_cells(small, "")}) == 8


def test_a_text_that_is_also_measured_on_is_told(values, tmp_path):
    data = copy.deepcopy(values)
    data["ablation"]["studies"] = LEFT_OUT | {"calibration": ["text", "random"]}
    data["ablation"] |= {"seeds": {}, "text": data["evaluation"]["perplexity"]["path"]}
    ready = preflight(AblationRecipe.parse(data), tmp_path)
    assert ready.warnings == [
        "ablation.text and evaluation.perplexity.path are the same file: the perplexity of a cell "
        "is measured on text that it was calibrated with"
    ]


def test_the_disk_is_counted_for_every_cell(values, recipe, tmp_path):
    # Base and mse with three seeds; RTN and GPTQ with three or one.
    more = preflight(recipe, tmp_path).disk
    one = preflight(changed(values, "ablation.seeds.stage", 1), tmp_path).disk
    assert one["exports"] / 8 == more["exports"] / 12 > 0
    assert one["streams"] == more["streams"] > 0
