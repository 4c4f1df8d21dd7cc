"""Every leaf of an ablation's own keys changes what is computed, not only what is planned."""

import copy

import pytest

import flows.ablate
from flows.recipes.ablation import AblationRecipe, planned_cells
from flows.recipes.file import recipe_sha256
from flows.reports.ablation import Ablation
from normtweak_core.ablation.config import STUDIES
from tasks.engine.progress import Progress
from tests.flows.stage_bodies import Bodies
from tests.flows.stage_keys import changed
from tests.flows.test_ablation_recipe import LEFT_OUT, OTHER
from tests.flows.tiny_model import ablation_values, write_project
from tests.sampled import sampled

pytestmark = pytest.mark.timeout(600)  # whichever comes first imports torch and transformers

# What a study has before a leaf of it is changed: the value of the base, which costs nothing anew.
BEFORE = {
    "calibration": ["text", "random"],
    "loss": ["channel", "mse"],
    "target": ["local", "global"],
    "stage": ["gptq", "norm_tweak"],
    "schedule": ["constant", "linear"],
    "iterations": [1, 2],
    "bits": [2, 3],
}
AFTER = OTHER | {"ablation.studies.calibration": ["text", "unrestricted"]}
AFTER |= {f"ablation.seeds.{study}": 2 for study in STUDIES}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation-results")
    write_project(folder)
    words = [f"w{number % 89}" for number in range(7, 1400, 5)]
    (folder / "named.txt").write_text(" ".join(words))
    (folder / "another.txt").write_text(" ".join(reversed(words[::2] + words[1::2])))
    return folder


@pytest.fixture(scope="module")
def stored():
    return {}


def recipe_of(project, key: str, value=None) -> AblationRecipe:
    """Return an ablation of the study that a key is of, with the key as it was or changed."""
    study = "calibration" if key == "ablation.text" else key.rpartition(".")[2]
    beside = {"loss": BEFORE["loss"]} if OTHER[key] == [] else {}  # one study has to stay
    values = copy.deepcopy(ablation_values(project))
    values["calibration"] = {"source": "random", "samples": 8, "length": 16}
    values["evaluation"]["perplexity"]["max_tokens"] = 64
    values["export"] = {"dtype": "float32"}  # no trial of others in every cell
    values["quantization"] = {"mse_grid": False}
    values["norm_tweak"] = {"rollback": False, "lr": 1e-2}
    values["ablation"] = {
        "studies": LEFT_OUT | {study: BEFORE[study]} | beside,
        "seeds": {study: 1},
        "text": str(project / "named.txt") if study == "calibration" else None,
    }
    if key == "ablation.text":
        value = value and str(project / value)
    return AblationRecipe.parse(values if value is None else changed(values, key, value))


def computed(recipe: AblationRecipe, stored: dict, monkeypatch) -> tuple[list, list]:
    """Return the exports of an ablation, and the numbers of its tables."""
    from tasks.models.job import open_job

    monkeypatch.setattr(flows.ablate, "Execution", lambda told: Bodies(stored))
    job, quiet = open_job(recipe.model, recipe.seed), Progress(terminal=False)
    shared = flows.ablate.Run(recipe, job, recipe.calibration, progress=quiet)
    cells = [
        flows.ablate._carry_out(shared, cell, recipe_sha256(cell.recipe))
        for cell in planned_cells(recipe, "")
    ]
    ablation = Ablation(recipe, "tiny", cells)
    spreads = [
        {name: told for name, told in row.items() if name in ("kl", "perplexity_ratio")}
        for rows in ablation.studies().values()
        for row in rows
    ]
    return sorted({one.export_sha256 for one in cells if one.study != "base"}), spreads


@pytest.mark.parametrize("key", sampled(OTHER))
def test_a_leaf_of_an_ablation_changes_what_is_computed(key, project, stored, monkeypatch):
    exports, spreads = computed(recipe_of(project, key), stored, monkeypatch)
    other_exports, other_spreads = computed(
        recipe_of(project, key, AFTER[key]), stored, monkeypatch
    )
    assert other_exports != exports, "the same exports"
    assert other_spreads != spreads, "the same numbers"
