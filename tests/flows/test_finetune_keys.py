"""What is in the keys of a fine-tuning; `test_recipe_results` shows that every leaf counts."""

import json
from types import SimpleNamespace

import pytest

from flows.recipes.finetune import FinetuneRecipe
from normtweak_core.finetune.source import ExportSource
from normtweak_core.settings import known_keys
from tasks.results import ExportResult
from tests.flows.stage_keys import GATE, LIMITS, TASK_KEYS, changed, made, stage_keys
from tests.flows.tiny_model import recipe_values

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
    "export.inexact": ("allow", {"export.format": "gguf"}),
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
    **LIMITS,
}
NO_STAGE = {*NO_BYTE, "quantization", *GATE}
# The export and its float model count by their content; the float type must be the export's.
ELSEWHERE = {
    "model.source", "finetune.float_model", "model.revision", "model.device", "export.dtype",
    "devices",
}  # fmt: skip


def keys_of(values: dict, project) -> dict[str, str]:
    from flows.finetune import FINETUNE
    from tasks.models.starting_point import StartingPoint

    recipe = FinetuneRecipe.parse(values)
    source = ExportSource(
        project, "compressed-tensors", "float16", 2, 16, False, "full", "0" * 64,
        str(project / "model"), None, "0" * 64,
    )  # fmt: skip
    start = StartingPoint(source, made(ExportResult, "start"))
    ready = SimpleNamespace(float_model=source.float_model(recipe.model, None))
    return stage_keys(FINETUNE, recipe, inputs={"start": start}, ready=ready)


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
    listed = OTHER.keys() | BESIDE.keys() | NO_STAGE | ELSEWHERE
    assert set(known_keys(FinetuneRecipe)) - listed == set()


@pytest.mark.parametrize("key", [*TASK_KEYS, "finetune.data.languages", "export.inexact"])
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
    differing = {name for name in before if before[name] != after.get(name)}
    trained = {name for name in before if name.startswith("train ")}
    assert differing == trained | {"export", "verify", "size check", "evaluate"}


def test_another_number_of_processes_trains_anew_end_to_end_and_not_the_blocks(project, base):
    before = keys_of(base, project)
    assert keys_of(base | {"devices": 1}, project) == before  # auto, on the CPU
    after = keys_of(base | {"devices": 2}, project)
    differing = {name for name in before if before[name] != after.get(name)}
    trained = {name for name in before if name.startswith("train ")}
    assert differing == trained | {"export", "verify", "size check", "evaluate"}
