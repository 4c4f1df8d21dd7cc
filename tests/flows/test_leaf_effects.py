"""Leaves of recipes that change no byte of a result: each has an effect, and a test that shows it.

A leaf that is in no table here and in none of `test_recipe_results` fails the first test.
"""

import importlib
import inspect

import pytest

from flows.recipes.ablation import AblationRecipe
from flows.recipes.finetune import FinetuneRecipe
from flows.recipes.quantize import Recipe
from flows.recipes.ternary import TernaryRecipe
from normtweak_core.errors import InputError
from normtweak_core.evaluate.gate import gate_failures
from normtweak_core.settings import known_keys
from tests.flows import (
    test_ablation_recipe,
    test_finetune_keys,
    test_recipe_keys,
    test_ternary_keys,
)
from tests.flows.stage_keys import changed
from tests.flows.tiny_model import recipe_values, ternary_values, variables_of, write_project

CHANGES_A_RESULT = {
    Recipe: {
        *test_recipe_keys.OTHER,
        *test_recipe_keys.GENERATED,
        *test_recipe_keys.SYMMETRIC,
        *test_recipe_keys.ACTIVATIONS,
        *test_recipe_keys.TRAINING,
        *test_recipe_keys.TASK_KEYS,
    },
    TernaryRecipe: {*test_ternary_keys.OTHER, *test_ternary_keys.BESIDE},
    FinetuneRecipe: {*test_finetune_keys.OTHER, *test_finetune_keys.BESIDE},
}
# Tests elsewhere, whose text holds the last word of the key.
NAMED = {
    "name": "tests.flows.test_shared_export.test_recipes_of_one_export_keep_apart_what_is_theirs",
    "registry.alias": (
        "tests.flows.test_shared_export.test_recipes_of_one_export_keep_apart_what_is_theirs"
    ),
    "registry.promote_to": (
        "tests.flows.test_shared_export.test_recipes_of_one_export_keep_apart_what_is_theirs"
    ),
    "calibration.images": (
        "tests.core.vision.test_writing."
        "test_images_calibrate_a_model_and_its_report_and_card_say_so"
    ),
    "quantization.experts.few_tokens": (
        "tests.core.quantization.test_experts."
        "test_starved_experts_are_rounded_to_nearest_where_the_recipe_says_so"
    ),
    "quantization.experts.min_tokens": (
        "tests.core.quantization.test_experts."
        "test_ties_and_an_expert_without_tokens_leave_none_uncalibrated"
    ),
    "quantization.bits.average": (
        "tests.core.widths.test_allotment.test_no_other_widths_within_the_budget_cost_less"
    ),
    "quantization.bits.choose_from": (
        "tests.core.widths.test_measuring.test_a_width_costs_what_the_logits_lose"
    ),
    "limits.memory": ("tests.flows.test_limits.test_a_run_within_its_limits_writes_the_same_bytes"),
    "limits.disk": "tests.flows.test_limits.test_a_run_that_may_write_more_is_refused",
    "limits.threads": (
        "tests.flows.test_limits.test_threads_are_those_of_the_recipe_and_then_those_before"
    ),
    "export.inexact": (
        "tests.core.export.test_gguf_grid."
        "test_what_is_nearest_is_written_where_that_is_allowed_and_the_error_is_said"
    ),
    "devices": "tests.flows.test_ranks_runs.test_any_number_of_processes_writes_the_same_bytes",
    "on_problem": "tests.flows.test_failing_runs.test_a_problem_ends_a_run_that_allows_none",
    "export.verify_timeout": (
        "tests.flows.test_recipe_results.test_a_verification_ends_when_the_recipe_says"
    ),
    "finetune.float_model": (
        "tests.flows.test_finetune.test_what_is_no_export_of_the_right_model_is_exit_code_2"
    ),
    "quantization": "tests.flows.test_finetune.test_what_contradicts_the_export_is_exit_code_2",
}
NAMED |= {
    f"{section}.{leaf}": (
        "tests.flows.test_recipe_results."
        "test_saving_often_and_computing_twice_lead_to_the_same_export"
    )
    for section in ("ternary", "finetune")
    for leaf in ("save_every", "gradient_checkpointing")
}
# What passes; a value that it does not pass, and what stands beside it before and after.
MEASURED = {
    "windows": 40.0, "tokens": 4000.0,
    "perplexity/ratio": 1.1, "nll_difference/mean": 0.095, "nll_difference/stderr": 1e-3,
    "kl/mean": 0.2, "kl/stderr": 1e-3, "top1_agreement": 0.8, "top1_agreement_stderr": 1e-3,
    "piqa/items": 100.0, "piqa/acc/lost": 6.0, "piqa/acc/won": 0.0, "piqa/acc/drop": 0.06,
}  # fmt: skip
GATES = {
    "gate.max_perplexity_ratio": (1.05, {}),
    "gate.max_kl": (0.1, {}),
    "gate.min_top1_agreement": (0.9, {}),
    "gate.max_accuracy_drop": ({"piqa": 0.05}, {}),
    "gate.confidence": (0.9999, {"gate.max_accuracy_drop": {"piqa": 0.13}}),
}
HERE = {"model.device", "model.revision", *GATES}
# One value alone is accepted: null, what is built, or what the export says.
ONE_VALUE = {
    Recipe: {"ternary", "finetune"},
    TernaryRecipe: {"ternary.activation_bits"},
    FinetuneRecipe: {"export.dtype"},
}
# What other tests of whole trainings see: GGUF beside bitnet, and the export that is trained on.
WHOLE_RUNS = {TernaryRecipe: {"export.format"}, FinetuneRecipe: {"model.source"}}


@pytest.mark.parametrize("model", CHANGES_A_RESULT)
def test_every_leaf_has_a_case(model):
    told = CHANGES_A_RESULT[model] | ONE_VALUE[model] | WHOLE_RUNS.get(model, set())
    assert set(known_keys(model)) - told <= {*NAMED, *HERE}


@pytest.mark.parametrize("key", NAMED)
def test_a_named_test_is_there_and_speaks_of_the_leaf(key):
    module, _, name = NAMED[key].rpartition(".")
    test = getattr(importlib.import_module(module), name)
    assert key.rpartition(".")[2] in inspect.getsource(test)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("effects")
    write_project(folder)
    with variables_of(folder / "state"):
        yield folder


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("model.device", "cuda:99", r"cuda:99, and torch sees \d+ CUDA devices"),
        ("model.revision", "main", "is for hub ids"),
    ],
)
def test_a_device_or_revision_that_is_not_there_is_refused(key, value, found, project):
    from tasks.models.job import open_job

    recipe = Recipe.parse(changed(recipe_values(project), key, value))
    with pytest.raises(InputError, match=found):
        open_job(recipe.model, recipe.seed)


@pytest.mark.parametrize("key", GATES)
@pytest.mark.parametrize("kind", [Recipe, TernaryRecipe, FinetuneRecipe])
def test_a_leaf_of_the_gate_of_any_recipe_decides_what_passes(kind, key, project):
    value, beside = GATES[key]
    values = ternary_values(project) if kind is TernaryRecipe else recipe_values(project)
    if kind is FinetuneRecipe:
        values = values | {"finetune": {"data": values.pop("calibration")}}
    for name, other in (beside | {"evaluation.tasks": ["piqa"]}).items():
        values = changed(values, name, other)
    assert gate_failures(kind.parse(values).gate, MEASURED) == []
    (failure,) = gate_failures(kind.parse(changed(values, key, value)).gate, MEASURED)
    assert (key if key != "gate.confidence" else "confidence 0.9999") in failure


def test_every_leaf_of_an_ablations_base_is_one_of_a_recipe_that_changes_a_result():
    own = {*test_ablation_recipe.OTHER}
    base = set(known_keys(AblationRecipe)) - own
    told = CHANGES_A_RESULT[Recipe] | ONE_VALUE[Recipe]
    assert base - told <= {*NAMED, *HERE}
