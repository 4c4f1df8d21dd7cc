import dataclasses
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from flows.checks import machine as budget
from flows.checks.forecast import quantize_seconds
from flows.checks.memory import memory_bytes
from flows.checks.training import (
    finetune_memory,
    finetune_work,
    ternary_memory,
    ternary_work,
)
from flows.commands.plan import memory_line
from flows.pipeline.declared import Finished
from flows.recipes.finetune import FinetuneRecipe
from flows.recipes.quantize import Recipe
from flows.recipes.ternary import TernaryRecipe
from normtweak_core.forecast.trial import Costs, tried
from normtweak_core.quantization.config import QuantizationConfig
from tasks.engine.progress import readable_seconds
from tests.flows.command_line import normtweak
from tests.flows.tiny_model import recipe_values, ternary_values, write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    write_project(folder)
    return folder


def plan_of(project, recipe: Path) -> str:
    """Return what `normtweak plan` prints on a root that does not exist."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = normtweak(project / "state", "plan", recipe, **pipes, TMPDIR=str(project))
    told, errors = running.communicate(timeout=100)
    assert running.returncode == 0, errors.decode()
    assert errors == b""
    return told.decode()


@pytest.fixture(scope="module")
def shown(project):
    """The plan of a quantization, and the files there were before."""
    before = sorted(project.rglob("*"))
    return plan_of(project, project / "recipe.yaml"), before


def test_a_plan_leaves_nothing_behind(shown, project):
    assert sorted(project.rglob("*")) == shown[1]


def test_a_ternary_training_is_planned_as_well(project, tmp_path):
    recipe, values = tmp_path / "ternary.yaml", ternary_values(project)
    values["ternary"]["data"] = {"source": "generated", "samples": 8, "length": 16}
    recipe.write_text(yaml.safe_dump(values))
    before = sorted(project.rglob("*"))
    lines = plan_of(project, recipe).splitlines()
    assert sorted(project.rglob("*")) == before
    assert lines[0] == (
        f"model   {project}/model: 2 blocks, 88,384 parameters, 81,920 of them to ternary, trained "
        "for 768 tokens"
    )
    # Two layers, key and value, 4 heads of 16, 16 positions of 4 bytes; 96 logits and two copies.
    assert lines[1] == (
        "text    8 windows of 16 tokens, source generated, 8 at once in 140.3 kB (17.5 kB each)"
    )
    assert lines[lines.index("stages") + 1 : -1] == [
        "  dry run: will run",
        "  data: will run",
        "  surgery: will run",
        "  float type: will run",
        "  start from GPTQ: 0 of 2 cached",
        "  training: 0 of 10 cached",
        "  export: will run",
        "  verify: will run",
        "  size check: will run",
        "  evaluate: 0 of 2 cached",
        "  register: will run",
    ]
    assert lines[-1] == "nothing was written"


def test_a_plan_tells_disk_memory_time_and_stages(shown, project):
    lines = shown[0].splitlines()
    assert lines[0] == (
        f"model   {project}/model: 2 blocks, 88,384 parameters, 81,920 of them to 2 bits "
        "(gptq, groups of 64)"
    )
    assert lines[1] == "text    8 windows of 16 tokens, source text"
    assert lines[2].startswith(f"disk    at most 33.9 MB under {project}/state, ")
    memory = next(place for place, line in enumerate(lines) if line.startswith("memory  about "))
    told = [line.partition(", ") for line in lines[memory + 1 : memory + 8]]
    assert [(name.partition(":")[0].strip(), how) for name, _, how in told] == [
        ("start", "block by block"),
        ("calibrate", "block by block"),
        ("float type", "block by block"),
        ("blocks", "block by block"),
        ("final tune", "with a whole model"),
        ("export", "block by block"),
        ("evaluate", "block by block"),
    ]
    assert any("tried on one block, and 22 s whatever the model" in line for line in lines)
    stages = lines[lines.index("stages") + 1 : -1]
    assert stages == [
        "  dry run: will run",
        "  calibrate: will run",
        "  float type: will run",
        "  blocks: 0 of 2 cached",
        "  final tune: will run",
        "  export: will run",
        "  baseline: 0 of 2 cached",
        "  verify: will run",
        "  size check: will run",
        "  evaluate: 0 of 2 cached",
        "  register: will run",
    ]
    assert lines[-1] == "nothing was written"


COSTS = Costs(
    opened=1.0,
    load=0.5,
    forward=1e-3,
    half=2e-3,
    step=4e-3,
    written=5e-3,
    statistics=6e-3,
    solve=10.0,
    rounding=3.0,
    drift=1e-4,
    head=1e-3,
    head_step=3e-3,
    compared=2e-3,
)


def estimate(project, at_once=None, **changes):
    values = recipe_values(project)
    for key, inner in changes.items():
        values[key] = values.get(key, {}) | inner
    shape = budget.model_shape(project / "model")
    return quantize_seconds(Recipe.parse(values), shape, 16, COSTS, at_once)


def test_seconds_are_those_of_a_block_times_what_a_run_does_with_it(project):
    # Two blocks, 8 windows of 16 tokens of which one is held out.
    plain = estimate(project, norm_tweak={"enabled": False}, final_tune={"enabled": False})
    assert plain["blocks"] == pytest.approx(1 + 2 * (0.5 + 10 + 128 * (2e-3 + 1e-4 + 6e-3)))
    assert plain["baseline"] == pytest.approx(1 + 2 * (0.5 + 3 + 128 * (2e-3 + 1e-4)))
    assert plain["calibrate"] == pytest.approx(1 + 2 * (0.5 + 128 * 1e-3) + 128 * 1e-3)
    assert "final tune" not in plain
    tweaked = estimate(project, norm_tweak={"enabled": True, "iterations": 1})
    more = 7 * 16 * 4e-3 + 5 * 16 * 1e-3 + 128 * 1.1e-3
    assert tweaked["blocks"] - plain["blocks"] == pytest.approx(2 * more)
    tuned = [estimate(project, final_tune={"enabled": True, "steps": n}) for n in (10, 20)]
    step = 16 * (2 * 4e-3 + 3e-3)
    assert tuned[1]["final tune"] - tuned[0]["final tune"] == pytest.approx(10 * step)
    bare = {"method": "rtn", "propagation": {"alpha": 0}}
    rounded = estimate(project, norm_tweak={"enabled": False}, quantization=bare)
    assert rounded["blocks"] == pytest.approx(plain["baseline"])
    assert rounded["baseline"] == plain["baseline"]


def test_text_that_is_written_costs_each_of_its_tokens(project):
    given, alone, four = (estimate(project, at_once) for at_once in (None, 1, 4))
    assert alone["calibrate"] - given["calibrate"] == pytest.approx(128 * (2 * 5e-3 + 1e-3))
    assert four["calibrate"] == alone["calibrate"]


def test_one_block_is_tried_at_what_the_recipe_asks_for(project):
    coarse, searched = (
        tried(
            project / "model",
            torch.float32,
            "cpu",
            16,
            QuantizationConfig(bits=4, group_size=32, symmetric=True, mse_grid=mse),
        )
        for mse in (False, True)
    )
    assert all(value > 0 for value in vars(coarse).values())
    assert searched.rounding > 2 * coarse.rounding
    assert searched.solve > coarse.solve
    assert coarse.step > coarse.forward


def test_memory_is_compared_with_that_of_the_device_that_computes():
    asked = []

    def available(device):
        asked.append(device)
        return {"cpu": 64 * 10**9, "cuda:1": 8 * 10**9}[device]

    stages = {"blocks": 10 * 10**9, "evaluate": 3 * 10**9}
    assert memory_line(stages, "cuda:1", available) == (
        "memory  about 10.0 GB at its peak (blocks), 8.0 GB available on cuda:1; that may not be "
        "enough"
    )
    assert memory_line(stages, "cpu", available) == (
        "memory  about 10.0 GB at its peak (blocks), 64.0 GB available"
    )
    assert asked == ["cuda:1", "cpu"]


def test_memory_counts_one_model_where_one_is_whole_and_blocks_where_none_is(project):
    shape = budget.model_shape(project / "model")
    values = recipe_values(project)
    values["evaluation"] = {"perplexity": {"max_tokens": 1000}, "tasks": ["piqa"]}

    def memory(shape, **changes):
        return memory_bytes(Recipe.parse(values | changes), shape, 16)

    stages = memory(shape)
    halves = memory(shape, model=values["model"] | {"dtype": "bfloat16"})
    assert stages["evaluate tasks"] - halves["evaluate tasks"] == shape.parameters * 2
    written = values["calibration"] | {"source": "generated", "path": None}
    wrote = memory(shape, calibration=written)["calibrate"]
    half = memory(shape, calibration=written, model=values["model"] | {"dtype": "bfloat16"})
    assert wrote - half["calibrate"] == shape.parameters * 2
    stream = 8 * 16 * 64
    assert stages["final tune"] - halves["final tune"] == (shape.parameters + stream) * 2
    wide = {
        name: dataclasses.replace(one, in_features=one.in_features * 64)
        for name, one in shape.linears.items()
    }
    deep = [
        memory(
            dataclasses.replace(
                shape,
                num_blocks=2 * times,
                parameters=shape.parameters + (64 * times - 1) * shape.linear_weights,
                linears={f"{copy} {name}": s for copy in range(times) for name, s in wide.items()},
            )
        )
        for times in (8, 16)
    ]
    assert deep[0]["evaluate"] == deep[1]["evaluate"]
    assert deep[1]["evaluate tasks"] > deep[0]["evaluate tasks"]
    without = memory(shape, final_tune={"enabled": False}, evaluation={})
    assert set(stages) - set(without) == {"final tune", "evaluate tasks"}
    assert without["evaluate"] - stages["evaluate"] == 99_000 * 64 * 4 * 3


def test_a_training_counts_steps_teacher_and_what_a_backward_pass_keeps(project):
    shape = budget.model_shape(project / "model")

    def ternary(**keys):
        recipe = TernaryRecipe.parse(ternary_values(project, **keys))
        work, memory = (of(recipe, shape, 16) for of in (ternary_work, ternary_memory))
        return work["training"], memory["training"]

    tokens = 24 * 2 * 16
    distilled, alone = ternary(), ternary(objective="ce")
    assert (distilled[0], alone[0]) == (4 * tokens * 88_384, 3 * tokens * 88_384)
    assert distilled[1] - alone[1] == 4 * 88_384  # the float model
    assert ternary(steps=48)[0] == 2 * distilled[0]
    recomputed = ternary(gradient_checkpointing=True)
    assert recomputed[0] == 5 * tokens * 88_384
    halves = distilled[1] - ternary(accumulate=2)[1]
    sides = 2 * (5 * 64 * 2 + 2 * (64 + 128) - 2 * 64 + 128 + 64)  # of all linears, in and out
    assert halves == 16 * (4 * 4 * sides + 3 * 4 * 96)
    # One of two blocks is kept, and the inputs of both.
    assert distilled[1] - recomputed[1] == 32 * (4 * 4 * sides // 2 - 2 * 64 * 4)


def test_a_fine_tuning_counts_its_blocks_and_the_start(project):
    shape = budget.model_shape(project / "model")
    data = recipe_values(project)["calibration"]

    def finetune(**keys):
        values = {"name": "x", "model": {"source": "export"}}
        values |= {"finetune": {"steps": 4, "batch": 2, "data": data} | keys}
        recipe = FinetuneRecipe.parse(values)
        return finetune_work(recipe, shape, 16), finetune_memory(recipe, shape, 16)

    work, memory = finetune(block_steps=10)
    assert work["training"] == 4 * 4 * 2 * 16 * 88_384
    assert work["blocks"] == (3 * 10 * 2 * 16 + 4 * 8 * 16) * 81_920
    assert work["evaluate"] == 5 * 100_000 * 88_384
    without = finetune(block_steps=0)
    assert without[0]["blocks"] == 0
    assert set(memory) - set(without[1]) == {"blocks"}


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        (Finished("export", 1), "export: cached"),
        (Finished("export", 0), "export: will run"),
        (Finished("blocks", 3, 5), "blocks: 3 of 5 cached"),
    ],
)
def test_a_stage_says_what_is_cached(stage, text):
    assert str(stage) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (89.4, "89 s"), (120, "2 min"), (7200, "2.0 h")]
)
def test_durations_are_readable(seconds, text):
    assert readable_seconds(seconds) == text
