"""No accepted value is without effect: every leaf of the recipe changes a key of some stage."""

import dataclasses
import hashlib

import pytest

from flows.params import NOT_BUILT, Recipe, parse_recipe
from flows.recipe_errors import known_keys
from normtweak_core.errors import InputError
from tests.flows.tiny_model import recipe_values, variables_of, write_model, write_project

# Another accepted value of each key. A new key of the recipe fails here until it is listed.
OTHER = {
    "seed": 1,
    "model.source": "{0}/other-model",
    "model.dtype": "bfloat16",
    "calibration.source": "dataset",
    "calibration.samples": 9,
    "calibration.length": 17,
    "calibration.path": "{0}/evaluation.txt",
    "quantization.method": "rtn",
    "quantization.bits": 3,
    "quantization.group_size": 32,
    "quantization.symmetric": True,
    "quantization.act_order": False,
    "quantization.mse_grid": False,
    "quantization.percdamp": 0.02,
    "quantization.propagation.alpha": 0.5,
    "quantization.propagation.ridge": 0.02,
    "norm_tweak.enabled": False,
    "norm_tweak.loss": "mse",
    "norm_tweak.target": "local",
    "norm_tweak.lr": 2e-3,
    "norm_tweak.lr_scale": 0.5,
    "norm_tweak.schedule": "cosine",
    "norm_tweak.iterations": 2,
    "norm_tweak.rollback": False,
    "final_tune.enabled": False,
    "final_tune.steps": 201,
    "final_tune.lr": 2e-3,
    "evaluation.perplexity.path": "{0}/calibration.txt",
    "evaluation.perplexity.length": 17,
    "evaluation.perplexity.max_tokens": 64,
    "export.format": "gptq",
    "export.dtype": "bfloat16",
}
# Read only with calibration.source generated.
GENERATED = {"calibration.languages": ["latin"]}
# What decides the registry or how a run ends; tests of the registry and of problems see to them.
NO_STAGE = {"name", "registry.alias", "registry.promote_to", "on_problem"}
ELSEWHERE = {"model.revision", "model.device"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaves")
    write_project(folder)
    write_model(folder / "other-model", seed=1)
    with variables_of(folder / "state") as root:
        import os

        from tasks.environment import default_variables

        (root / "prefect").mkdir(parents=True)  # Prefect is imported below
        os.environ |= default_variables(root) | {"OMP_NUM_THREADS": "2"}
        yield folder


def changed(values: dict, key: str, value: object) -> dict:
    *sections, leaf = key.split(".")
    copy = {**values}
    place = copy
    for section in sections:
        place[section] = {**place.get(section, {})}
        place = place[section]
    place[leaf] = value
    return copy


def stage_keys(recipe: Recipe, device: str = "cpu") -> dict[str, str]:
    """Return the key of every stage, with results whose content is the key of their stage."""
    from tasks.blocks import block_key
    from tasks.calibrate import calibration_key, calibration_length
    from tasks.chain import ChainSettings
    from tasks.evaluating import (
        evaluation_inputs,
        evaluation_key,
        evaluation_length,
        float_evaluation_key,
    )
    from tasks.exporting import export_key, verify_key
    from tasks.float_type import float_type_key
    from tasks.job import open_job
    from tasks.results import BlockResult, CalibrationResult, ExportResult, FinalTuneResult
    from tasks.tune import final_tune_key

    job = dataclasses.replace(open_job(recipe.model, recipe.seed), device=device)
    keys = {"calibrate": calibration_key(job, recipe.calibration)}
    calibration = made(CalibrationResult, keys["calibrate"])
    keys["float type"] = float_type_key(job, recipe.export)
    dtype = "float16" if recipe.export.dtype == "auto" else recipe.export.dtype
    settings = ChainSettings(recipe.quantization, recipe.norm_tweak, dtype)
    blocks: list = []
    for index in range(job.blocks[1]):
        parent = blocks[-1] if blocks else None
        key = keys[f"block {index}"] = block_key(job, calibration, settings, index, parent)
        blocks.append(made(BlockResult, key))
    tuned = None
    if recipe.final_tune.enabled:
        key = final_tune_key(job, calibration, blocks, settings, recipe.final_tune)
        keys["final tune"] = key
        tuned = made(FinalTuneResult, key)
    keys["export"] = export_key(job, blocks, tuned, settings, recipe.export)
    export = made(ExportResult, keys["export"])
    keys["verify"] = verify_key(job, export)
    length = calibration_length(job, recipe.calibration)
    length = evaluation_length(job, recipe.evaluation.perplexity, length)
    inputs = evaluation_inputs(job, recipe.evaluation.perplexity, length)
    keys["evaluate float"] = float_evaluation_key(job, inputs)
    keys["evaluate"] = evaluation_key(job, export, inputs)
    return keys


def made(kind: type, key: str):
    """A result whose every field stands for the stage that made it; no file is looked at."""
    from tasks.artifacts import ArtifactRef

    digest = hashlib.sha256(key.encode()).hexdigest()
    reference = ArtifactRef.model_construct(path="x", size=1, sha256=digest)
    values = {name: digest for name in kind.model_fields}
    for name, field in kind.model_fields.items():
        if field.annotation is ArtifactRef:
            values[name] = reference
    return kind.model_construct(**values)


@pytest.fixture(scope="module")
def base(project):
    return stage_keys(parse_recipe(recipe_values(project)))


def test_every_key_of_the_recipe_is_accounted_for():
    listed = {*OTHER, *GENERATED, *NO_STAGE, *ELSEWHERE, *(k for k in NOT_BUILT if k != "finetune")}
    assert set(known_keys(Recipe)) == listed


def test_equal_recipes_have_equal_keys(project, base):
    assert stage_keys(parse_recipe(recipe_values(project))) == base


@pytest.mark.parametrize("key", OTHER)
def test_changing_a_key_changes_a_stage(key, project, base):
    value = OTHER[key]
    value = value.format(project) if isinstance(value, str) else value
    recipe = parse_recipe(changed(recipe_values(project), key, value))
    assert stage_keys(recipe) != base


@pytest.mark.parametrize("key", GENERATED)
def test_changing_a_key_of_generation_changes_the_calibration(key, project):
    values = changed(recipe_values(project), "calibration", {"source": "generated", "samples": 8})
    plain = stage_keys(parse_recipe(values))
    other = stage_keys(parse_recipe(changed(values, key, GENERATED[key])))
    assert plain["calibrate"] != other["calibrate"]


@pytest.mark.parametrize("key", sorted(NO_STAGE))
def test_what_belongs_to_the_registry_or_the_end_of_a_run_redoes_no_stage(key, project, base):
    value = {"name": "b", "registry.alias": "b", "registry.promote_to": None, "on_problem": "fail"}
    recipe = parse_recipe(changed(recipe_values(project), key, value[key]))
    assert recipe != parse_recipe(recipe_values(project))
    assert stage_keys(recipe) == base


def test_another_type_of_device_changes_every_stage(project, base):
    other = stage_keys(parse_recipe(recipe_values(project)), device="cuda:0")
    assert all(other[name] != base[name] for name in base)


def test_a_revision_is_refused_where_it_has_no_effect(project):
    recipe = parse_recipe(changed(recipe_values(project), "model.revision", "main"))
    with pytest.raises(InputError, match=r"model\.revision is for hub ids"):
        stage_keys(recipe)


def test_a_changed_norm_tweak_keeps_calibration_and_a_changed_evaluation_keeps_the_export(
    project, base
):
    tweaked = stage_keys(parse_recipe(changed(recipe_values(project), "norm_tweak.lr", 0.5)))
    assert {name for name in base if tweaked[name] == base[name]} == {
        "calibrate", "float type", "evaluate float",
    }  # fmt: skip
    values = changed(recipe_values(project), "evaluation.perplexity.max_tokens", 64)
    evaluated = stage_keys(parse_recipe(values))
    assert {name for name in base if evaluated[name] != base[name]} == {
        "evaluate float", "evaluate",
    }  # fmt: skip
