"""What the ladder says of a process is what the process did."""

import sys

import pytest

from flows.recipes.quantize import Recipe
from tests.benchmarks.ladder import RUNGS, recipe_of
from tests.benchmarks.watched import Look, costs, on_disk, watch

MIB = 1 << 20
# Stages as events tell them; the second holds 200 MiB, computes for half a second and writes.
CHILD = """
import time
from pathlib import Path
from tasks.engine import events
from tasks.engine.environment import state_root
events.record("calibrate", part="build")
time.sleep(0.3)
events.record("block", part="solve", block=0, chain="a")
held = b"x" * (200 << 20)
until = time.process_time() + 0.5
while time.process_time() < until:
    pass
(state_root() / "stream").write_bytes(memoryview(held)[: 50 << 20])
time.sleep(0.6)
(state_root() / "stream").unlink()
events.record("block", part="done", block=0, chain="a")
del held
events.record("block", part="solve", block=0, chain="b")
time.sleep(0.3)
"""


def test_memory_time_and_disk_of_a_process_are_told_by_stage(tmp_path):
    found = watch([sys.executable, "-c", CHILD], tmp_path, {"NORMTWEAK_HOME": str(tmp_path)})
    assert found.code == 0, found.output
    before, held, after = (found.stages[one] for one in ("calibrate", "blocks", "baseline"))
    assert held.anonymous - before.anonymous == pytest.approx(200 * MIB, rel=0.05)
    assert held.resident > held.anonymous
    assert held.data - before.data == pytest.approx(200 * MIB, rel=0.05)
    assert after.anonymous < before.anonymous + 50 * MIB
    assert found.disk == pytest.approx(50 * MIB, rel=0.01)
    assert found.blocks == [pytest.approx(held.cpu_seconds, abs=0.1)]
    assert 0.5 < held.cpu_seconds < 1.5


def test_a_stage_that_comes_twice_is_counted_together():
    looks = [Look(float(time), 10 * time, time, 0, 20 * time, time / 2) for time in range(10)]
    found = costs(looks, [(-1.0, "start"), (2.5, "evaluate"), (5.5, "verify"), (7.5, "evaluate")])
    assert found["start"].resident == 22
    assert found["evaluate"].anonymous == 90
    assert (found["evaluate"].seconds, found["evaluate"].cpu_seconds) == (3.0, 1.5)
    assert (found["verify"].children, found["evaluate"].data) == (0, 180)


def test_every_rung_is_a_recipe(tmp_path):
    for name, rung in RUNGS.items():
        recipe = Recipe.parse(recipe_of(name, rung, tmp_path, tmp_path / "text"))
        assert recipe.quantization.mse_grid is (
            dict(rung.values).get("quantization.mse_grid", True)
        )


def test_a_rung_asks_for_what_its_table_says(tmp_path):
    values = recipe_of("1.1B", RUNGS["1.1B"], tmp_path, tmp_path / "text")
    assert values["name"] == "ladder-1-1B"
    assert values["quantization"]["mse_grid"] is False
    assert values["calibration"] == {
        "source": "text",
        "path": str(tmp_path / "text"),
        "samples": 8,
        "length": 128,
    }
    assert on_disk(tmp_path) == 0
