"""No accepted value is without effect: every leaf of a recipe changes a result, not only a key."""

import contextlib
import itertools
import json
import os

import numpy
import pytest
import torch

from flows.recipes.finetune import FinetuneRecipe
from flows.recipes.quantize import Recipe
from flows.recipes.ternary import TernaryRecipe
from normtweak_core.errors import VerificationError
from normtweak_core.training.trainer import Trainer
from tasks.engine.progress import Progress
from tests.flows import test_finetune_keys, test_recipe_keys, test_ternary_keys
from tests.flows.stage_bodies import Bodies, first_difference
from tests.flows.stage_keys import NOTHING_FOUND, TASK_KEYS, changed, write_other_items
from tests.flows.tiny_model import (
    VOCABULARY,
    recipe_values,
    ternary_values,
    variables_of,
    write_model,
    write_project,
)
from tests.sampled import sampled

pytestmark = pytest.mark.timeout(600)  # whichever comes first imports torch and transformers


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_project(folder)
    write_other_items(folder)
    write_model(folder / "other-model", seed=1)
    write_two_scripts(write_model(folder / "two-scripts"))
    # lm-eval begins a text with such a token.
    settings = {"unk_token": "w0", "eos_token": "w1"}
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    # Words of the model's own, so that no window is like another.
    for number, name in enumerate(("calibration", "evaluation")):
        words = numpy.random.default_rng(number).integers(1, VOCABULARY, 300)
        (folder / f"{name}.txt").write_text(" ".join(f"w{word}" for word in words))
    with variables_of(folder / "state") as root:
        from tasks.engine.environment import FOLDERS, default_variables

        for name in FOLDERS:
            (root / name).mkdir(parents=True, exist_ok=True)
        os.environ |= default_variables(root) | {"OMP_NUM_THREADS": "1"}
        yield folder


def write_two_scripts(folder):
    """Give a model words of letters, half of them Cyrillic."""
    letters = [chr(ord("a") + number) for number in range(7)]
    pairs = ["".join(pair) for pair in itertools.product(letters, letters)][: VOCABULARY // 2]
    shift = ord("а") - ord("a")  # noqa: RUF001
    words = pairs + ["".join(chr(ord(letter) + shift) for letter in pair) for pair in pairs]
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"] |= {"vocab": {word: i for i, word in enumerate(words)}, "unk_token": "aa"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "aa"}))


@pytest.fixture(scope="module")
def stored():
    return {}


def with_values(project, values: dict, changes: dict) -> dict:
    for key, value in changes.items():
        value = value.format(project) if isinstance(value, str) else value
        values = changed(values, key, value)
    return values


# Quantization


QUANTIZED = {"final_tune.steps": 3, "norm_tweak.lr": 1e-2, "final_tune.lr": 1e-3}


def carried_out(pipeline, recipe, ready, *upto: str):
    """Return what carries out stages, with a function that does it on `Bodies`."""

    def carry_out(bodies):
        run = pipeline.begin(recipe, ready, progress=Progress(terminal=False))
        run.training_shown = lambda training: contextlib.nullcontext(lambda *_: None)
        stages = pipeline.upto(*upto)
        return stages.walk(run, bodies.visit, pipeline.inputs(ready, True))

    return carry_out


EVALUATED = ("export", "evaluate", "evaluate tasks", "evaluate float tasks")


def quantization(values: dict, *upto: str):
    from flows.quantize import QUANTIZE

    return carried_out(QUANTIZE, Recipe.parse(values), NOTHING_FOUND, *(upto or EVALUATED))


# A training scores tasks and makes its text by the same two functions, with sections of one type.
GENERATED = {
    "model.source": "{0}/two-scripts",
    "calibration": {"source": "generated", "samples": 8, "length": 16},
}


def scored_alone(values: dict):
    return quantization(values, "evaluate float tasks")


def calibrated_alone(values: dict):
    return quantization(values, "calibrate")


def base_effects(values, made_by, stored):
    bodies = Bodies(stored)
    made_by(values)(bodies)
    return bodies.effects


def difference(before: dict, after: dict, made_by, stored) -> str | None:
    known = base_effects(before, made_by, stored)
    return first_difference(Bodies(stored, known), made_by(after))


# What else has to hold so that there is something to see on so small a model.
VISIBLE = {
    "norm_tweak.schedule": {"norm_tweak.rollback": False},
    "ternary.accumulate": {"ternary.batch": 4},
    "ternary.clip": {"ternary.clip": 1e-4},
    "ternary.schedule": {"ternary.warmup": 1.0},
    "ternary.lr_second": {"ternary.lr": 3e-3},
    "ternary.weight_decay": {"ternary.lr": 0.1},
    "finetune.accumulate": {"finetune.batch": 4},
    "finetune.clip": {"finetune.clip": 1e-3},
}


def seen(key: str, value, beside: dict, values: dict, project, made_by, stored) -> str | None:
    """Return the first stage whose result a value changes."""
    values = with_values(project, values, beside | VISIBLE.get(key, {}))
    return difference(values, with_values(project, values, {key: value}), made_by, stored)


@pytest.mark.parametrize("key", sampled(test_recipe_keys.OTHER))
def test_a_leaf_of_a_quantization_changes_a_result(key, project, stored):
    values = with_values(project, recipe_values(project), QUANTIZED)
    assert seen(key, test_recipe_keys.OTHER[key], {}, values, project, quantization, stored)


@pytest.mark.parametrize("key", sampled(test_recipe_keys.TRAINING))
def test_a_leaf_of_the_block_training_changes_a_result(key, project, stored):
    # Rounded to nearest, a tiny block is far enough from its target for a few steps to help.
    rounded = {"quantization.method": "rtn", "quantization.propagation.alpha": 0}
    values = with_values(project, recipe_values(project), QUANTIZED | rounded)
    beside = {"block_training.enabled": True, "block_training.steps": 3, "block_training.lr": 5e-2}
    value = test_recipe_keys.TRAINING[key]
    assert seen(key, value, beside, values, project, quantization, stored) == "block 0"


def test_the_levels_of_a_symmetric_grid_change_a_result(project, stored):
    values = with_values(project, recipe_values(project), QUANTIZED)
    beside = {"quantization.symmetric": True, "quantization.bits": 2}
    key = "quantization.levels"
    assert seen(key, "ternary", beside, values, project, quantization, stored) == "block 0"


@pytest.mark.parametrize("key", test_recipe_keys.ACTIVATIONS)
def test_a_leaf_of_rounded_activations_changes_a_result(key, project, stored):
    values = with_values(project, recipe_values(project), QUANTIZED)
    beside = {"quantization.symmetric": True}
    if key in test_recipe_keys.SMOOTHED:
        beside = test_recipe_keys.ROUNDED
    value = test_recipe_keys.ACTIVATIONS[key]
    assert seen(key, value, beside, values, project, quantization, stored) == "block 0"


def test_the_float_type_asked_for_is_that_of_the_export(project, stored):
    values = with_values(project, recipe_values(project), QUANTIZED)
    key = "export.dtype"
    assert seen(key, "bfloat16", {}, values, project, quantization, stored) == "float type"


@pytest.mark.parametrize("key", sampled(TASK_KEYS))
def test_a_leaf_of_named_tasks_changes_a_result(key, project, stored):
    value, beside = TASK_KEYS[key]
    values = with_values(project, recipe_values(project), QUANTIZED)
    stage = seen(key, value, beside, values, project, scored_alone, stored)
    assert stage == f"evaluate float: {'boolq' if key == 'evaluation.tasks' else 'piqa'}"


def test_the_languages_of_a_generated_set_change_it(project, stored):
    values = with_values(project, recipe_values(project), GENERATED)
    key, value = next(iter(test_recipe_keys.GENERATED.items()))
    assert seen(key, value, {}, values, project, calibrated_alone, stored) == "calibrate"


# Training


TERNARY = {"ternary.steps": 4, "ternary.save_every": 10}


def ternary_training(values: dict):
    from flows.ternary import TERNARY

    return carried_out(TERNARY, TernaryRecipe.parse(values), NOTHING_FOUND, "export", "evaluate")


def leaves_of(module) -> dict:
    """Return another value of each leaf, and what must hold beside it, tasks and hub left out."""
    found = {key: (value, {}) for key, value in module.OTHER.items()}
    found |= {
        key: value
        for key, value in module.BESIDE.items()
        if key not in module.TASK_KEYS and not key.endswith("languages")
    }
    return found


TERNARY_LEAVES = leaves_of(test_ternary_keys)


@pytest.mark.parametrize("key", sampled(TERNARY_LEAVES))
def test_a_leaf_of_a_ternary_training_changes_a_result(key, project, stored):
    value, beside = TERNARY_LEAVES[key]
    values = with_values(project, ternary_values(project), TERNARY)
    assert seen(key, value, beside, values, project, ternary_training, stored)


# Fine-tuning


@pytest.fixture(scope="module")
def start(project, stored):
    """The folder of an export in 2 bits, and its payload."""
    changes = QUANTIZED | {"quantization.bits": 2, "final_tune.enabled": False}
    values = with_values(project, recipe_values(project), changes)
    export = quantization(values, "export")(Bodies(stored))["export"]
    return project / "state" / export.folder, export.export_sha256


def tuned(values: dict):
    from flows.checks.preflight import preflight
    from flows.finetune import FINETUNE
    from tasks.engine.environment import state_root

    recipe = FinetuneRecipe.parse(values)
    # Of what the export cannot contradict: the reader of gptq is not everywhere.
    plain = FinetuneRecipe.parse({**values, "export": {}})
    ready = preflight(plain, state_root())
    return carried_out(FINETUNE, recipe, ready, "export", "evaluate")


def finetune_values(project, start) -> dict:
    values = recipe_values(project)
    return {
        "name": "tiny-tuned",
        "model": {"source": str(start[0])},
        "finetune": {"block_steps": 2, "steps": 3, "batch": 2, "data": values["calibration"]},
        "evaluation": values["evaluation"],
    }


FINETUNE_LEAVES = leaves_of(test_finetune_keys)


@pytest.mark.parametrize("key", sampled(FINETUNE_LEAVES))
def test_a_leaf_of_a_fine_tuning_changes_a_result(key, project, stored, start):
    value, beside = FINETUNE_LEAVES[key]
    assert seen(key, value, beside, finetune_values(project, start), project, tuned, stored)


# What changes no byte is seen in how the training goes.


def training_of(values: dict, made_by, stored, monkeypatch) -> tuple[int, int, dict]:
    """Return how often a training is saved, the calls of modules in it, and the export."""
    # Anew, even where the key says that it would come out the same.
    bodies = Bodies({key: one for key, one in stored.items() if not key.startswith("training-")})
    saved, calls = [], []
    save = Trainer.save
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", lambda trainer: saved.append(1) or save(trainer))
        counting = torch.nn.modules.module.register_module_forward_hook(lambda *_: calls.append(1))
        try:
            made_by(values)(bodies)
        finally:
            counting.remove()
    return len(saved), len(calls), bodies.effects["export"]


@pytest.mark.parametrize("section", ["ternary", "finetune"])
def test_saving_often_and_computing_twice_lead_to_the_same_export(
    section, project, stored, start, monkeypatch
):
    if section == "ternary":
        values, made_by = ternary_values(project), ternary_training
    else:
        values, made_by = finetune_values(project, start), tuned
    steps = {f"{section}.steps": 12, f"{section}.save_every": 20}  # ten are saved in any case
    values = with_values(project, values, steps)
    saved, calls, export = training_of(values, made_by, stored, monkeypatch)
    often = with_values(project, values, {f"{section}.save_every": 1})
    assert training_of(often, made_by, stored, monkeypatch) == (saved + 2, calls, export)
    twice = with_values(project, values, {f"{section}.gradient_checkpointing": True})
    found = training_of(twice, made_by, stored, monkeypatch)
    assert found[1] > calls
    assert (found[0], found[2]) == (saved, export)


def test_a_verification_ends_when_the_recipe_says(project, stored):
    changes = QUANTIZED | {"quantization.bits": 2, "final_tune.enabled": False}
    changes |= {"export.verify_timeout": 0.2}
    values = with_values(project, recipe_values(project), changes)
    with pytest.raises(VerificationError, match=r"must finish within 0\.2 s; it did not"):
        quantization(values, "verify")(Bodies(stored))


@pytest.mark.parametrize(("rate", "kept"), [(50.0, False), (1e-2, True)])
def test_one_step_that_makes_it_worse_is_not_exported(project, stored, start, rate, kept):
    changes = {"finetune.block_steps": 0, "finetune.steps": 1 if not kept else 12}
    changes |= {"finetune.lr": rate, "finetune.scale_lr": rate / 10}
    found = tuned(with_values(project, finetune_values(project, start), changes))(Bodies(stored))
    trained = found["training"][-1]
    assert (trained.best > 0) is kept
    assert trained.held_out[trained.best] == min(trained.held_out.values())
    folder = project / "state" / found["export"].folder
    exported, before = (place / "model.safetensors" for place in (folder, start[0]))
    assert (exported.read_bytes() == before.read_bytes()) is not kept
