import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows import budget
from flows.params import parse_recipe
from flows.plan import Stage, readable_seconds
from tests.flows.tiny_model import recipe_values, write_project

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    write_project(folder)
    return folder


@pytest.fixture(scope="module")
def shown(project):
    """What `normtweak plan` prints on a root that does not exist, and what it leaves behind."""
    before = sorted(project.rglob("*"))
    ours = ("NORMTWEAK_", "PREFECT_", "MLFLOW_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "plan", str(project / "recipe.yaml")],
        cwd=REPOSITORY,
        env=clean | {"NORMTWEAK_HOME": str(project / "state"), "TMPDIR": str(project)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout, before


def test_a_plan_leaves_nothing_behind(shown, project):
    assert sorted(project.rglob("*")) == shown[1]


def test_a_plan_tells_disk_memory_time_and_stages(shown, project):
    lines = shown[0].splitlines()
    assert lines[0] == (
        f"model   {project}/model: 2 blocks, 88,384 parameters, 81,920 of them to 2 bits "
        "(gptq, groups of 64)"
    )
    assert lines[1] == "text    8 windows of 16 tokens, source text"
    assert lines[2].startswith(f"disk    at most 33.9 MB under {project}/state, ")
    assert any(line.startswith("memory  about ") for line in lines)
    assert any("counted multiply-adds at 35 % of" in line for line in lines)
    stages = lines[lines.index("stages") + 1 : -1]
    assert stages == [
        "  calibrate: will run",
        "  float type: will run",
        "  blocks: 0 of 2 cached",
        "  baseline: 0 of 2 cached",
        "  final tune: will run",
        "  export: will run",
        "  verify: will run",
        "  evaluate: 0 of 2 cached",
        "  register: will run",
    ]
    assert lines[-1] == "nothing was written"


def estimate(project, **changes):
    values = recipe_values(project)
    for key, inner in changes.items():
        values[key] = values.get(key, {}) | inner
    shape = budget.model_shape(project / "model")
    return budget.time_estimate(parse_recipe(values), shape, 16, speed=1e9)


def test_time_grows_with_the_work_and_falls_with_the_speed(project):
    plain = estimate(project).seconds
    more = estimate(project, calibration={"samples": 16}).seconds
    assert more["blocks"] > plain["blocks"]
    assert more["calibrate"] == 2 * plain["calibrate"]
    assert "final tune" not in estimate(project, final_tune={"enabled": False}).seconds
    untweaked = estimate(project, norm_tweak={"enabled": False}).seconds
    assert untweaked["blocks"] < plain["blocks"]
    shape = budget.model_shape(project / "model")
    recipe = parse_recipe(recipe_values(project))
    fast = budget.time_estimate(recipe, shape, 16, speed=2e9).seconds
    assert fast["blocks"] == plain["blocks"] / 2


def test_memory_counts_both_models_where_both_are_held(project):
    shape = budget.model_shape(project / "model")
    recipe = parse_recipe(recipe_values(project))
    stages = budget.memory_bytes(recipe, shape, 16)
    assert stages["final tune"] - stages["evaluate"] == 3 * 4096 * 96 * 4
    assert stages["evaluate"] - stages["calibrate"] == shape.parameters * 4


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        (Stage("export", 1), "export: cached"),
        (Stage("export", 0), "export: will run"),
        (Stage("blocks", 3, 5), "blocks: 3 of 5 cached"),
    ],
)
def test_a_stage_says_what_is_cached(stage, text):
    assert str(stage) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (89.4, "89 s"), (120, "2 min"), (7200, "2.0 h")]
)
def test_durations_are_readable(seconds, text):
    assert readable_seconds(seconds) == text
