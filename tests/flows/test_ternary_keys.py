"""What is in the keys of a ternary training; `test_recipe_results` shows that every leaf counts."""

import pytest

from flows.recipes.ternary import TernaryRecipe
from normtweak_core.settings import known_keys
from tasks.stages.training.training import segment_ends
from tests.flows.stage_keys import GATE, LIMITS, TASK_KEYS, changed, stage_keys
from tests.flows.tiny_model import ternary_values

OTHER = {
    "seed": 1,
    "model.source": "{0}/other-model",
    "model.dtype": "bfloat16",
    "ternary.start": "absmean",
    "ternary.norm": "none",
    "ternary.affine": False,
    "ternary.share_gains": False,
    "ternary.ramp_norm": False,
    "ternary.schedule": "cosine",
    "ternary.scope": "layerwise",
    "ternary.warmup": 0.4,
    "ternary.lambda_start": 0.1,
    "ternary.steps": 25,
    "ternary.batch": 4,
    "ternary.accumulate": 2,
    "ternary.lr": 2e-3,
    "ternary.lr_second": 1e-3,
    "ternary.weight_decay": 0.1,
    "ternary.objective": "ce",
    "ternary.hidden_weight": 0.5,
    "ternary.temperature": 2.0,
    "ternary.clip": 0.5,
    "ternary.dtype": "bfloat16",
    "ternary.data.source": "dataset",
    "ternary.data.samples": 9,
    "ternary.data.length": 17,
    "ternary.data.path": "{0}/evaluation.txt",
    "evaluation.perplexity.path": "{0}/calibration.txt",
    "evaluation.perplexity.length": 17,
    "evaluation.perplexity.max_tokens": 64,
    "export.dtype": "bfloat16",
}
# Read only beside another key.
BESIDE = {
    **TASK_KEYS,
    "ternary.order": ("backward", {"ternary.scope": "layerwise"}),
    "ternary.overlap": (0.2, {"ternary.scope": "layerwise"}),
    "ternary.kd_weight": (0.3, {"ternary.objective": "mix"}),
    "ternary.data.languages": (
        ["latin"], {"ternary.data.source": "generated", "ternary.data.path": None},
    ),
}  # fmt: skip
# They change no byte of the result; 8 is all that bitnet holds.
NO_BYTE = {
    "ternary.save_every": 3,
    "ternary.gradient_checkpointing": True,
    "export.verify_timeout": 9,
}
NO_STAGE = {"name", "registry.alias", "ternary.activation_bits", *NO_BYTE, *GATE, *LIMITS}
ELSEWHERE = {"model.revision", "model.device", "export.format", "devices"}


def keys_of(values: dict) -> dict[str, str]:
    from flows.ternary import TERNARY

    return stage_keys(TERNARY, TernaryRecipe.parse(values))


def with_values(project, changes: dict) -> dict:
    values = ternary_values(project)
    for key, value in changes.items():
        value = value.format(project) if isinstance(value, str) else value
        values = changed(values, key, value)
    return values


def test_every_key_of_the_recipe_is_accounted_for():
    assert set(known_keys(TernaryRecipe)) == {*OTHER, *BESIDE, *NO_STAGE, *ELSEWHERE}


@pytest.mark.parametrize("key", [*TASK_KEYS, "ternary.data.languages"])
def test_changing_a_key_that_another_switches_on_changes_a_stage(key, project):
    value, needed = BESIDE[key]
    plain = keys_of(with_values(project, needed))
    assert keys_of(with_values(project, needed | {key: value})) != plain


def test_settings_of_the_training_do_not_redo_data_and_surgery(project):
    plain = keys_of(with_values(project, {}))
    for key in ("ternary.lr", "ternary.schedule", "ternary.objective"):
        other = keys_of(with_values(project, {key: OTHER[key]}))
        after = {name for name in plain if plain[name] != other[name]}
        trained = {f"train {until}" for until in segment_ends(24)}
        assert after == trained | {"export", "verify", "size check", "evaluate"}


def test_another_number_of_processes_trains_anew_and_shares_what_is_before(project):
    plain = keys_of(with_values(project, {}))
    assert keys_of(with_values(project, {"devices": 1})) == plain  # auto, on the CPU
    other = keys_of(with_values(project, {"devices": 2}))
    trained = {f"train {until}" for until in segment_ends(24)}
    after = {name for name in plain if plain[name] != other[name]}
    assert after == trained | {"export", "verify", "size check", "evaluate"}


def test_what_changes_no_byte_changes_no_key(project):
    assert keys_of(with_values(project, NO_BYTE)) == keys_of(with_values(project, {}))
