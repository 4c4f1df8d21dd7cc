"""What a value of a study changes, and which studies there can be."""

import pytest
from pydantic import ValidationError

from normtweak_core.ablation.config import (
    STUDIES,
    TITLES,
    AblationConfig,
    SeedsConfig,
    StudiesConfig,
    changes_of,
    value_name,
)
from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.quantization.config import QuantizationConfig

GENERATED = CalibrationConfig(samples=8)
CYRILLIC = CalibrationConfig(samples=8, languages=["cyrillic"])
ANY = CalibrationConfig(samples=8, languages=None)
TEXT = CalibrationConfig(samples=8, source="text", path="base.txt")


def changes(study, value, base=GENERATED):
    return changes_of(study, value, base, "a.txt")


def test_the_studies_are_those_that_are_asked_for():
    assert StudiesConfig().chosen() == {
        "calibration": ["restricted", "unrestricted", "text", "random"],
        "loss": ["channel", "mse", "kl"],
        "target": ["local", "global"],
        "stage": ["rtn", "gptq", "propagation", "norm_tweak", "final_tune"],
        "schedule": ["constant", "step", "linear", "cosine", "exponential"],
        "iterations": [1, 2, 4, 8],
        "bits": [8, 4, 3, 2, "ternary", 1],
    }
    assert {name: getattr(SeedsConfig(), name) for name in STUDIES} == {
        "calibration": 3, "loss": 3, "target": 1, "stage": 3, "schedule": 1, "iterations": 1,
        "bits": 1,
    }  # fmt: skip
    assert set(TITLES) == set(STUDIES)


def test_an_empty_list_leaves_a_study_out():
    assert "bits" not in StudiesConfig(bits=[]).chosen()


@pytest.mark.parametrize(
    ("value", "base", "expected"),
    [
        ("restricted", GENERATED, ("generated", None, "auto")),
        ("restricted", CYRILLIC, ("generated", None, ["cyrillic"])),
        ("restricted", ANY, ("generated", None, "auto")),
        ("restricted", TEXT, ("generated", None, "auto")),
        ("unrestricted", CYRILLIC, ("generated", None, None)),
        ("text", CYRILLIC, ("text", "a.txt", "auto")),
        ("random", TEXT, ("random", None, "auto")),
    ],
)
def test_a_calibration_source_is_a_valid_section(value, base, expected):
    found = changes("calibration", value, base)
    section = {key.removeprefix("calibration."): one for key, one in found.items()}
    assert (section["source"], section["path"], section["languages"]) == expected
    CalibrationConfig(samples=8, **section)


@pytest.mark.parametrize(
    ("study", "key", "value"),
    [
        ("loss", "norm_tweak.loss", "kl"),
        ("target", "norm_tweak.target", "local"),
        ("schedule", "norm_tweak.schedule", "step"),
        ("iterations", "norm_tweak.iterations", 4),
    ],
)
def test_a_study_of_one_key_changes_that_key(study, key, value):
    assert changes(study, value) == {key: value}


def test_every_stage_switches_one_thing_more_on():
    keys = ("quantization.method", "norm_tweak.enabled", "final_tune.enabled")
    settings = {stage: changes("stage", stage) for stage in StudiesConfig().stage}
    assert {stage: tuple(found[key] for key in keys) for stage, found in settings.items()} == {
        "rtn": ("rtn", False, False),
        "gptq": ("gptq", False, False),
        "propagation": ("gptq", False, False),
        "norm_tweak": ("gptq", True, False),
        "final_tune": ("gptq", True, True),
    }
    share = "quantization.propagation.alpha"  # from propagation on, that of the base
    off = [stage for stage, found in settings.items() if found.get(share) == 0]
    assert off == ["rtn", "gptq"]
    assert all(share not in settings[stage] for stage in settings if stage not in off)
    untrained = [stage for stage, found in settings.items() if "block_training.enabled" in found]
    assert untrained == ["rtn", "gptq", "propagation", "norm_tweak"]


@pytest.mark.parametrize("value", StudiesConfig().bits)
def test_a_width_is_a_valid_section_of_the_quantization(value):
    found = changes("bits", value)
    section = {key.removeprefix("quantization."): one for key, one in found.items()}
    config = QuantizationConfig(**section)
    levels = {"ternary": (2, "ternary", True), 1: (2, "binary", True)}
    expected = levels.get(value, (value, "full", False))
    assert (config.bits, config.levels, config.symmetric) == expected


@pytest.mark.parametrize(
    ("study", "value", "name"),
    [
        ("bits", 8, "8 bits"), ("bits", 1, "1 bit"), ("bits", "ternary", "ternary"),
        ("iterations", 1, "1"), ("stage", "norm_tweak", "+ norm tweaking"),
        ("calibration", "unrestricted", "generated, any first token"), ("loss", "mse", "mse"),
    ],
)  # fmt: skip
def test_values_have_names(study, value, name):
    assert value_name(study, value) == name


def test_names_of_the_values_of_a_study_differ():
    for study, values in StudiesConfig().chosen().items():
        assert len({value_name(study, value) for value in values}) == len(values)


def test_seeds_of_a_study_that_is_left_out_are_refused_unless_they_are_the_default():
    AblationConfig(studies={"loss": []})
    with pytest.raises(ValidationError, match=r"ablation\.seeds\.loss is only read"):
        AblationConfig(studies={"loss": []}, seeds={"loss": 2})
