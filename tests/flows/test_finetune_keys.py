"""What is in the keys of a fine-tuning; `test_recipe_results` shows that every leaf counts."""

import json
import os

import pytest

from flows.recipes.base import NOT_BUILT
from flows.recipes.finetune import FinetuneRecipe
from normtweak_core.finetune.source import ExportSource
from normtweak_core.settings import known_keys
from tests.flows.stage_keys import GATE, TASK_KEYS, changed, made, write_other_items
from tests.flows.tiny_model import recipe_values, variables_of, write_project

OTHER = {
    "seed": 1,
    "model.dtype": "bfloat16",
    "finetune.block_steps": 5,
    "finetune.steps": 25,
    "finetune.batch": 4,
    "finetune.accumulate": 2,
    "finetune.lr": 2e-2,
    "finetune.scale_lr": 2e-3,
    "finetune.clip": 0.5,
    "finetune.dtype": "bfloat16",
    "finetune.data.source": "dataset",
    "finetune.data.samples": 9,
    "finetune.data.length": 17,
    "finetune.data.path": "{0}/evaluation.txt",
    "evaluation.perplexity.path": "{0}/calibration.txt",
    "evaluation.perplexity.length": 17,
    "evaluation.perplexity.max_tokens": 64,
    "export.format": "gptq",
}
# Read only beside another key.
BESIDE = {
    **TASK_KEYS,
    "finetune.lora.rank": (4, {"finetune.lora.lr_ratio": 0.1}),
    "finetune.lora.lr_ratio": (0.2, {"finetune.lora.rank": 4}),
    "finetune.data.languages": (
        ["latin"], {"finetune.data.source": "generated", "finetune.data.path": None},
    ),
}  # fmt: skip
# Names, and what changes no byte; what must agree with the export changes nothing.
NO_BYTE = {
    "name": "other",
    "registry.alias": "nightly",
    "finetune.save_every": 7,
    "finetune.gradient_checkpointing": True,
    "export.verify_timeout": 9,
}
NO_STAGE = {*NO_BYTE, "quantization", *GATE}
# The export and its float model count by their content; the float type must be the export's.
ELSEWHERE = {
    "model.source", "finetune.float_model", "model.revision", "model.device", "export.dtype",
}  # fmt: skip


def keys_of(values: dict, project) -> dict[str, str]:
    from tasks.models.job import open_job
    from tasks.models.starting_point import StartingPoint
    from tasks.models.subjects import float_subject
    from tasks.results import CalibrationResult, ExportResult
    from tasks.stages.calibrate import calibration_key, calibration_length
    from tasks.stages.evaluate import float_evaluation_key, text_of
    from tasks.stages.float_type import start_float_type_key
    from tasks.stages.score import items_of, task_key
    from tasks.stages.training.finetune import finetune_export_key, finetune_origin
    from tasks.stages.training.finetune_blocks import TrainedBlockResult, trained_block_key
    from tasks.stages.training.segments import SegmentResult, segment_key

    recipe = FinetuneRecipe.parse(values)
    source = ExportSource(
        project, "compressed-tensors", "float16", 2, 16, False, "full", "0" * 64,
        str(project / "model"), None, "0" * 64,
    )  # fmt: skip
    start = StartingPoint(source, made(ExportResult, "start"))
    job = open_job(source.float_model(recipe.model, None), recipe.seed)
    config = recipe.finetune
    keys = {"data": calibration_key(job, config.data)}
    data = made(CalibrationResult, keys["data"])
    keys["float type"] = start_float_type_key(job, recipe.export, data, start)
    keys["block 0"] = trained_block_key(job, data, start, config, 0, None)
    block = made(TrainedBlockResult, keys["block 0"])
    keys["block 1"] = trained_block_key(job, data, start, config, 1, block)
    blocks = [block, made(TrainedBlockResult, keys["block 1"])]
    keys["train"] = segment_key(finetune_origin(job, data, start, blocks, config), config.steps)
    trained = made(SegmentResult, keys["train"])
    keys["export"] = finetune_export_key(job, data, start, trained, recipe.export, "float16")
    measured = recipe.evaluation.perplexity
    text = text_of(measured, job.source, calibration_length(job, config.data), job.context)
    keys["evaluate float"] = float_evaluation_key(job, text)
    for items in items_of(recipe.evaluation):
        keys[f"evaluate float: {items.task}"] = task_key(float_subject(job), items)
    return keys


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaves")
    write_project(folder)
    write_other_items(folder)
    with variables_of(folder / "state") as root:
        from tasks.engine.environment import default_variables

        (root / "prefect").mkdir(parents=True)  # Prefect is imported below
        os.environ |= default_variables(root) | {"OMP_NUM_THREADS": "2"}
        yield folder


@pytest.fixture
def base(project):
    values = recipe_values(project)
    return {
        "name": "tiny-tuned",
        "model": {"source": str(project / "export")},
        "finetune": {"steps": 24, "batch": 2, "data": values["calibration"]},
        "evaluation": values["evaluation"],
    }


def test_every_key_of_the_recipe_is_listed():
    listed = OTHER.keys() | BESIDE.keys() | NO_STAGE | ELSEWHERE | NOT_BUILT.keys()
    assert set(known_keys(FinetuneRecipe)) - listed == set()


@pytest.mark.parametrize("key", [*TASK_KEYS, "finetune.data.languages"])
def test_another_value_changes_the_key_of_a_stage(key, project, base):
    value, beside = BESIDE[key]
    for name, needed in beside.items():
        base = changed(base, name, needed)
    if isinstance(value, str):
        value = value.format(project)
    before = keys_of(json.loads(json.dumps(base)), project)
    assert keys_of(changed(base, key, value), project) != before


@pytest.mark.parametrize("key", NO_BYTE)
def test_what_changes_no_byte_changes_no_key(key, project, base):
    assert keys_of(changed(base, key, NO_BYTE[key]), project) == keys_of(base, project)


def test_steps_of_the_whole_model_do_not_touch_the_blocks(project, base):
    before, after = (
        keys_of(values, project) for values in (base, changed(base, "finetune.steps", 99))
    )
    differing = {name for name in before if before[name] != after[name]}
    assert differing == {"train", "export"}
