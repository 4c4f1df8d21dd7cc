"""Promises that the repository makes about itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.recipes.ablation import load_ablation_recipe
from flows.recipes.finetune import load_finetune_recipe
from flows.recipes.polynomial import load_polynomial_recipe
from flows.recipes.quantize import load_recipe
from flows.recipes.ternary import load_ternary_recipe
from tests import house

REPOSITORY = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_that_ships_is_valid(path):
    loaders = {
        "ablation": load_ablation_recipe,
        "polynomial": load_polynomial_recipe,
        "ternary": load_ternary_recipe,
        "finetune": load_finetune_recipe,
    }
    assert loaders.get(path.stem.partition("-")[0], load_recipe)(path).name


def test_the_results_in_the_readme_are_those_the_script_wrote():
    readme = (REPOSITORY / "README.md").read_text()
    shown = readme.partition("<!-- stages -->")[2].partition("<!-- /stages -->")[0]
    assert shown.strip() == (REPOSITORY / "docs/results/stages.md").read_text().strip()


def test_the_polynomial_study_in_the_readme_is_the_one_the_script_wrote():
    readme = (REPOSITORY / "README.md").read_text()
    shown = readme.partition("<!-- polynomial -->")[2].partition("<!-- /polynomial -->")[0]
    assert shown.strip() == (REPOSITORY / "docs/results/polynomial.md").read_text().strip()


@pytest.mark.parametrize("tool", [["lint-imports"], ["ruff", "check", "."]], ids=lambda t: t[0])
def test_the_checks_pass(tool):
    run = subprocess.run(
        [TOOLS / tool[0], *tool[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_house_keeps_its_limits():
    found = house.findings(house.sources(), (REPOSITORY / "README.md").read_text())
    assert house.excesses(found) == []


def test_the_prefect_server_can_be_imported_with_the_locked_packages(tmp_path):
    # `pip check` sees nothing wrong with a FastAPI on which this import fails.
    run = subprocess.run(
        [sys.executable, "-c", "import prefect.server.api.server"],
        capture_output=True,
        text=True,
        check=False,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "DO_NOT_TRACK": "true",
        },
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_the_reference_models_fit_their_budget():
    weights = list((REPOSITORY / "normtweak_core/reference/models").glob("*/model.safetensors"))
    assert sorted(path.parent.name for path in weights) == ["llama", "neox"]
    assert sum(path.stat().st_size for path in weights) <= 16_000_000
