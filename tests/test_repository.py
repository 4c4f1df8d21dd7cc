"""Promises that the repository makes about itself."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import COMMANDS
from flows.recipes.ablation import AblationRecipe
from flows.recipes.finetune import FinetuneRecipe
from flows.recipes.kinds import RECIPES
from flows.recipes.polynomial import PolynomialRecipe
from flows.recipes.quantize import Recipe
from flows.recipes.ternary import TernaryRecipe
from normtweak_core.settings import known_keys
from tests import house
from tests.benchmarks.results import DEFAULT_OUT, PAGES, split_page

REPOSITORY = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_that_ships_is_valid(path):
    loaders = {
        "ablation": AblationRecipe.load,
        "polynomial": PolynomialRecipe.load,
        "ternary": TernaryRecipe.load,
        "finetune": FinetuneRecipe.load,
    }
    assert loaders.get(path.stem.partition("-")[0], Recipe.load)(path).name


@pytest.mark.parametrize("name", PAGES)
def test_the_results_on_a_page_are_those_the_script_wrote(name):
    _, shown, _ = split_page((REPOSITORY / PAGES[name]).read_text(), name)
    assert shown.strip() == (DEFAULT_OUT / f"{name}.md").read_text().strip()


def test_every_link_and_picture_of_the_pages_leads_somewhere():
    pages = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")]
    lost = []
    for page in pages:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
            file = (page.parent / target).resolve() if target else page
            if not file.is_file():
                lost.append(f"{page.name}: {target}")
            elif anchor and anchor not in anchors(file.read_text()):
                lost.append(f"{page.name}: {target}#{anchor}")
    assert len(pages) > 10
    assert lost == []


def test_the_tree_in_the_documentation_is_that_of_the_packages():
    tree = (REPOSITORY / "docs/architecture.md").read_text().split("```")[1]
    package, told = "", {}
    for indent, name in re.findall(r"^( {0,2})([\w.]+)/? ", tree, re.MULTILINE):
        package = package if indent else name
        told.setdefault(package, set()).update({name} if indent else set())
    for package in house.PACKAGES:
        folders = {one.parent.name for one in (REPOSITORY / package).glob("*/__init__.py")}
        files = {one for one in told[package] if one.endswith(".py")}
        assert told[package] - files == folders
        assert all((REPOSITORY / package / one).is_file() for one in files)


def test_every_command_stands_in_the_table_of_commands():
    told = (REPOSITORY / "docs/operations.md").read_text()

    assert "quantize" in COMMANDS
    assert [name for name in COMMANDS if f"`normtweak {name}" not in told] == []


def test_every_study_stands_on_the_page_of_results_with_its_command():
    page = (REPOSITORY / "docs/results.md").read_text()
    goals = (REPOSITORY / "Makefile").read_text()
    studies = [
        file.stem
        for file in REPOSITORY.glob("tests/benchmarks/*.py")
        if '__name__ == "__main__"' in file.read_text()
    ]
    assert len(studies) > 10
    for study in studies:
        module = f"python -m tests.benchmarks.{study}"
        goal = re.search(
            rf"^([\w-]+): setup\n(?:\t.*\n)*?\t\$\(BIN\)/{module}\n", goals, re.MULTILINE
        )
        assert module in page or (goal and f"`make {goal[1]}`" in page), study


def test_the_recipe_keys_that_pages_speak_of_exist():
    keys = {key for recipe in RECIPES.values() for key in known_keys(recipe)}
    sections = {key.rpartition(".")[0] for key in keys} - {""}
    named = "|".join(sorted({section.partition(".")[0] for section in sections}))
    pages = [REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md")]
    text = "".join(page.read_text() for page in pages if page.name != "log.md")
    told = set(re.findall(rf"`((?:{named})\.[a-z_0-9.]+)[`:=]", text))
    assert len(told) > 50
    assert told - keys - sections == set()


def anchors(text):
    """Return what a link to a heading says, as GitHub makes it of the heading."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


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
