"""What is in the keys of the stages: what decides a result, and nothing else.

That every leaf changes a result is shown in `test_recipe_results`, by the values listed here.
"""

import pytest

from flows.recipes.quantize import Recipe
from normtweak_core.errors import InputError
from normtweak_core.settings import known_keys
from tests.core.export.test_experts_export import CONFIGS
from tests.flows.stage_keys import (
    DEVICES,
    GATE,
    LIMITS,
    TASK_KEYS,
    TASKED,
    changed,
    quantize_keys,
    stage_keys,
)
from tests.flows.tiny_model import recipe_values
from tests.tiny_exports import save_tiny_model

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
    "quantization.exponents": [2.0],
    "quantization.sweeps": 1,
    "quantization.percdamp": 0.02,
    "quantization.propagation.alpha": 0.5,
    "quantization.propagation.ridge": 0.02,
    "quantization.propagation.residual": 0.25,
    "norm_tweak.enabled": False,
    "norm_tweak.loss": "mse",
    "norm_tweak.target": "local",
    "norm_tweak.lr": 2e-3,
    "norm_tweak.lr_scale": 0.5,
    "norm_tweak.schedule": "constant",
    "norm_tweak.iterations": 2,
    "norm_tweak.rollback": False,
    "final_tune.enabled": False,
    "final_tune.steps": 201,
    "final_tune.lr": 2e-3,
    "final_tune.scales": False,
    "final_tune.scale_lr": 1e-2,
    "effort": "fast",
    "block_training.enabled": True,
    "evaluation.perplexity.path": "{0}/calibration.txt",
    "evaluation.perplexity.length": 17,
    "evaluation.perplexity.max_tokens": 64,
    "base": "{0}/base",
    "export.format": "gptq",
    "export.dtype": "bfloat16",
}
# Read only with calibration.source generated.
GENERATED = {"calibration.languages": ["latin"]}
# Read only of a model that reads images.
IMAGES = {"calibration.images": "{0}/images"}
# Read only with a symmetric grid of 2 bits.
SYMMETRIC = {"quantization.levels": "ternary"}
# Read only where widths are left to a budget.
MIXED = {"quantization.bits.average": 3.2, "quantization.bits.choose_from": [2, 4]}
# Read only where activations are rounded, which needs a symmetric grid.
ROUNDED = {"quantization.symmetric": True, "quantization.activation_bits": 8}
SMOOTHED = {"quantization.smoothing.enabled": False, "quantization.smoothing.alpha": 0.9}
ACTIVATIONS = {"quantization.activation_bits": 8} | SMOOTHED
# Read only where blocks are trained.
TRAINING = {
    "block_training.steps": 5,
    "block_training.batch": 3,
    "block_training.lr": 0.3,
    "block_training.scale_lr": 1e-2,
    "block_training.clip": 1e-3,
}
# Read only of a gguf file.
INEXACT = {"export.inexact": "allow"}
# Read only of a mixture of experts.
EXPERTS = {"quantization.experts.min_tokens": 2.0, "quantization.experts.few_tokens": "none"}
# What decides the registry or how a run ends: `test_leaf_effects`.
NO_STAGE = {"name", "registry.alias", "export.verify_timeout", "on_problem", *GATE, *LIMITS}
NO_STAGE |= DEVICES.keys()
ELSEWHERE = {"model.revision", "model.device", "ternary", "finetune"}


@pytest.fixture(scope="module")
def base(project):
    return quantize_keys(Recipe.parse(recipe_values(project)))


def test_every_key_of_the_recipe_is_accounted_for():
    listed = {
        *OTHER,
        *GENERATED,
        *IMAGES,
        *SYMMETRIC,
        *ACTIVATIONS,
        *TRAINING,
        *EXPERTS,
        *INEXACT,
        *MIXED,
        *TASK_KEYS,
        *NO_STAGE,
        *ELSEWHERE,
    }
    assert set(known_keys(Recipe)) == listed


def test_equal_recipes_have_equal_keys(project, base):
    assert quantize_keys(Recipe.parse(recipe_values(project))) == base


def test_the_float_type_asked_for_is_in_the_key_of_its_own_stage(project, base):
    recipe = Recipe.parse(changed(recipe_values(project), "export.dtype", "bfloat16"))
    assert quantize_keys(recipe)["float type"] != base["float type"]


@pytest.mark.parametrize("key", TASK_KEYS)
def test_what_only_tasks_read_changes_their_stages_alone(key, project):
    value, beside = TASK_KEYS[key]
    value = value.format(project) if isinstance(value, str) else value
    before, after = (
        quantize_keys(Recipe.parse(with_values(project, changes)))
        for changes in (beside, beside | {key: value})
    )
    differing = {name for name in before.keys() | after if before.get(name) != after.get(name)}
    task = "boolq" if key == "evaluation.tasks" else "piqa"
    assert differing == {f"evaluate float: {task}", f"evaluate: {task}"}


def test_the_levels_of_a_symmetric_grid_change_a_stage(project):
    symmetric = {"quantization.symmetric": True}
    plain = quantize_keys(Recipe.parse(with_values(project, symmetric)))
    for levels in ("ternary", "binary"):
        changes = symmetric | {"quantization.levels": levels}
        other = quantize_keys(Recipe.parse(with_values(project, changes)))
        assert other["block 0"] != plain["block 0"]


def test_rounded_activations_are_tried_at_the_start_and_change_what_is_made(project):
    plain, rounded = (
        quantize_keys(Recipe.parse(with_values(project, {"quantization.symmetric": True}, change)))
        for change in ({}, ROUNDED)
    )
    kept = {"calibrate", "float type", "evaluate float"}
    assert {name for name in plain if plain[name] == rounded[name]} == kept


@pytest.mark.parametrize("key", SMOOTHED)
def test_only_activations_that_are_rounded_are_smoothed(key, project):
    grid = {"quantization.symmetric": True}
    for beside, read in ((ROUNDED, True), (grid, False)):
        plain, other = (
            quantize_keys(Recipe.parse(with_values(project, beside, change)))
            for change in ({}, {key: SMOOTHED[key]})
        )
        assert (plain["block 0"] != other["block 0"]) is read
        assert (plain != other) is read
    off = ROUNDED | {"quantization.smoothing.enabled": False}
    plain, other = (
        quantize_keys(Recipe.parse(with_values(project, off, change)))
        for change in ({}, {"quantization.smoothing.alpha": 0.9})
    )
    assert plain == other


@pytest.mark.parametrize("key", TRAINING)
def test_a_key_of_the_block_training_is_read_where_blocks_are_trained(key, project):
    for trained in (True, False):
        plain, other = (
            quantize_keys(Recipe.parse(with_values(project, changes, change)))
            for changes in [{"block_training.enabled": trained}]
            for change in ({}, {key: TRAINING[key]})
        )
        assert (plain["block 0"] != other["block 0"]) is trained
        assert (plain != other) is trained


def test_an_inexact_file_is_another_export_and_only_of_gguf(project):
    for form, read in (("gguf", True), ("auto", False)):
        plain, other = (
            quantize_keys(Recipe.parse(with_values(project, {"export.format": form}, change)))
            for change in ({}, INEXACT)
        )
        assert (plain["export"] != other["export"]) is read
        assert plain["block 1"] == other["block 1"]
        assert (plain != other) is read


WIDTHS = [{"a": 2, "b": 3}, {"a": 3, "b": 3}]


@pytest.mark.parametrize("key", MIXED)
def test_a_budget_decides_widths_and_nothing_else(key, project):
    mixed = {"quantization.bits": {"average": 3.0, "choose_from": [2, 3]}}
    plain, other = (
        quantize_keys(Recipe.parse(with_values(project, mixed, change)), widths=WIDTHS)
        for change in ({}, {key: MIXED[key]})
    )
    changed_too = {"widths"}
    if key.endswith("choose_from"):
        changed_too |= {f"{what} of block {i}" for what in ("trial", "sensitivity") for i in (0, 1)}
        changed_too.add("float type")  # whose scales are those of the widest
    assert {name for name in plain if other[name] != plain[name]} == changed_too


def test_a_block_is_keyed_by_its_own_widths_and_its_successors_by_those_before(project):
    mixed = {"quantization.bits": {"average": 3.0, "choose_from": [2, 3]}}
    recipe = Recipe.parse(with_values(project, mixed))
    plain = quantize_keys(recipe, widths=WIDTHS)
    other = quantize_keys(recipe, widths=[WIDTHS[0], {"a": 3, "b": 2}])
    assert other["block 0"] == plain["block 0"]
    for name in ("block 1", "final tune", "export"):
        assert other[name] != plain[name]
    for name in ("trial of block 0", "sensitivity of block 0", "widths", "calibrate"):
        assert other[name] == plain[name]


@pytest.mark.parametrize("key", EXPERTS)
@pytest.mark.parametrize("mixture", [True, False])
def test_few_tokens_matter_where_a_mixture_needs_statistics(key, mixture, project):
    save_tiny_model(project / "mixture", CONFIGS["qwen3_moe"])
    symmetric = {"quantization.symmetric": True, "quantization.group_size": 32}
    if mixture:
        symmetric["model.source"] = str(project / "mixture")
    for method, read in (({}, mixture), (RTN, False)):
        plain, other = (
            quantize_keys(Recipe.parse(with_values(project, symmetric, method, change)))
            for change in ({}, {key: EXPERTS[key]})
        )
        assert (plain["block 0"] != other["block 0"]) is read
        assert (plain != other) is read


# What rounding to nearest does not read, and what no method reads of a correction switched off.
UNREAD_BY_RTN = ["quantization.percdamp", "quantization.act_order"]
UNREAD_BY_RTN += ["quantization.exponents", "quantization.sweeps"]
UNREAD_WITHOUT_PROPAGATION = [f"quantization.propagation.{key}" for key in ("ridge", "residual")]
RTN = {"quantization.method": "rtn", "quantization.propagation.alpha": 0}


def with_values(project, *changes: dict) -> dict:
    values = recipe_values(project)
    for key, value in {k: v for change in changes for k, v in change.items()}.items():
        value = value.format(project) if isinstance(value, str) else value
        values = changed(values, key, value)
    return values


@pytest.mark.parametrize("key", [key for key in OTHER if key.startswith("quantization.")])
def test_round_to_nearest_is_keyed_by_what_it_reads_and_by_all_of_it(key, project):
    plain = quantize_keys(Recipe.parse(with_values(project, RTN)))
    value = "gptq" if key == "quantization.method" else OTHER[key]
    other = quantize_keys(Recipe.parse(with_values(project, RTN, {key: value})))
    assert (other == plain) is (key in UNREAD_BY_RTN + UNREAD_WITHOUT_PROPAGATION)


@pytest.mark.parametrize(
    ("method", "alpha", "key", "read"),
    [
        ("gptq", 0, "quantization.propagation.ridge", False),
        ("gptq", 0, "quantization.percdamp", True),
        ("gptq", 0, "quantization.act_order", True),
        ("gptq", 0, "quantization.sweeps", True),
        ("rtn", 0.5, "quantization.propagation.ridge", True),
        ("rtn", 0.5, "quantization.percdamp", False),
        ("rtn", 0.5, "quantization.act_order", False),
        ("rtn", 0.5, "quantization.sweeps", False),
    ],
)
def test_a_field_counts_where_the_method_reads_it(method, alpha, key, read, project):
    settings = {"quantization.method": method, "quantization.propagation.alpha": alpha}
    plain = quantize_keys(Recipe.parse(with_values(project, settings)))
    other = quantize_keys(Recipe.parse(with_values(project, settings, {key: OTHER[key]})))
    assert (other["block 0"] != plain["block 0"]) is read
    assert (other != plain) is read


@pytest.mark.parametrize(
    "key", [*UNREAD_BY_RTN, *UNREAD_WITHOUT_PROPAGATION, "quantization.propagation.alpha"]
)
def test_the_baseline_is_kept_when_only_its_recipes_gptq_changes(key, project):
    from flows.quantize import QUANTIZE

    def baseline_blocks(values: dict) -> dict[str, str]:
        keys = stage_keys(QUANTIZE, Recipe.parse(values))
        return {name: key for name, key in keys.items() if name.startswith("rtn ")}

    kept = baseline_blocks(with_values(project, {key: OTHER[key]}))
    assert kept == baseline_blocks(recipe_values(project))
    assert kept != baseline_blocks(with_values(project, {"quantization.bits": 3}))


@pytest.mark.parametrize("key", GENERATED)
def test_changing_a_key_of_generation_changes_the_calibration(key, project):
    values = changed(recipe_values(project), "calibration", {"source": "generated", "samples": 8})
    plain = quantize_keys(Recipe.parse(values))
    other = quantize_keys(Recipe.parse(changed(values, key, GENERATED[key])))
    assert plain["calibrate"] != other["calibrate"]


@pytest.mark.parametrize("key", sorted(NO_STAGE))
def test_what_belongs_to_the_registry_or_the_end_of_a_run_redoes_no_stage(key, project, base):
    values = {"name": "b", "registry.alias": "b", "registry.promote_to": "b", "on_problem": "fail"}
    values |= LIMITS | DEVICES | {"gate.confidence": 0.9, "gate.max_accuracy_drop": {"piqa": 0.5}}
    tasks = TASKED if "drop" in key else {}
    plain = Recipe.parse(with_values(project, tasks))
    recipe = Recipe.parse(with_values(project, tasks, {key: values.get(key, 0.5)}))
    assert recipe != plain
    assert quantize_keys(recipe) == (quantize_keys(plain) if tasks else base)


def test_another_type_of_device_changes_every_stage(project, base):
    other = quantize_keys(Recipe.parse(recipe_values(project)), device="cuda:0")
    assert all(other[name] != base[name] for name in base)


def test_a_revision_is_refused_where_it_has_no_effect(project):
    recipe = Recipe.parse(changed(recipe_values(project), "model.revision", "main"))
    with pytest.raises(InputError, match=r"model\.revision is for hub ids"):
        quantize_keys(recipe)


def test_a_changed_norm_tweak_keeps_calibration_and_a_changed_evaluation_keeps_the_export(
    project, base
):
    tweaked = quantize_keys(Recipe.parse(changed(recipe_values(project), "norm_tweak.lr", 0.5)))
    assert {name for name in base if tweaked[name] == base[name]} == {
        "dry run", "calibrate", "float type", "evaluate float",
    }  # fmt: skip
    values = changed(recipe_values(project), "evaluation.perplexity.max_tokens", 64)
    evaluated = quantize_keys(Recipe.parse(values))
    assert {name for name in base if evaluated[name] != base[name]} == {
        "evaluate float", "evaluate",
    }  # fmt: skip
