"""What a gate asks of an evaluation."""

import math

import pytest
from pydantic import ValidationError

from normtweak_core.evaluate.config import EvaluationConfig
from normtweak_core.evaluate.gate import GateConfig, gate_failures, require_measured

METRICS = {"perplexity/ratio": 1.1, "kl/mean": 0.05, "top1_agreement": 0.9}


def test_without_thresholds_everything_passes():
    assert gate_failures(GateConfig(), {}) == []


def test_a_threshold_is_kept_to_where_it_is_reached_exactly():
    config = GateConfig(max_perplexity_ratio=1.1, max_kl=0.05, min_top1_agreement=0.9)
    assert gate_failures(config, METRICS) == []


def test_each_missed_threshold_is_named_with_what_was_found():
    config = GateConfig(max_perplexity_ratio=1.05, max_kl=0.04, min_top1_agreement=0.95)
    assert gate_failures(config, METRICS) == [
        "perplexity/ratio must be at most 1.05 (gate.max_perplexity_ratio); found 1.1",
        "kl/mean must be at most 0.04 (gate.max_kl); found 0.05",
        "top1_agreement must be at least 0.95 (gate.min_top1_agreement); found 0.9",
    ]


def test_a_number_that_is_none_keeps_to_nothing():
    (failure,) = gate_failures(GateConfig(max_kl=0.1), METRICS | {"kl/mean": math.nan})
    assert failure.endswith("found nan")


DROP = {"piqa/acc/drop": 0.01, "piqa/acc/drop_stderr": 0.005}


@pytest.mark.parametrize(
    ("threshold", "confidence", "passes"),
    # 1.6449 and 2.3263 are the quantiles of the normal distribution at 95 % and 99 %.
    [(0.0183, 0.95, True), (0.0182, 0.95, False), (0.0183, 0.99, False), (0.0217, 0.99, True)],
)
def test_a_drop_of_accuracy_must_be_below_the_threshold_with_confidence(
    threshold, confidence, passes
):
    config = GateConfig(max_accuracy_drop={"piqa": threshold}, confidence=confidence)
    assert (gate_failures(config, DROP) == []) is passes


def test_a_drop_that_is_too_large_is_said_with_its_bound():
    config = GateConfig(max_accuracy_drop={"piqa": 0.015})
    assert gate_failures(config, DROP) == [
        "piqa/acc/drop must be at most 0.015 with confidence 0.95 (gate.max_accuracy_drop); found "
        "0.01, which may be 0.018224"
    ]


def test_a_drop_that_nothing_is_known_of_passes_no_gate():
    config = GateConfig(max_accuracy_drop={"piqa": 1.0})
    for metrics in ({"piqa/acc/drop": 0.0}, DROP | {"piqa/acc/drop": math.nan}):
        (failure,) = gate_failures(config, metrics)
        assert "piqa/acc/drop must be at most 1 with confidence 0.95" in failure


def test_a_gate_on_a_task_that_is_not_evaluated_is_refused():
    gate = GateConfig(max_accuracy_drop={"boolq": 0.1, "piqa": 0.1})
    require_measured(gate, EvaluationConfig(tasks=["piqa", "boolq"]))
    message = r"boolq is not in evaluation.tasks, which is \['piqa'\]: add it there"
    with pytest.raises(ValueError, match=message):
        require_measured(gate, EvaluationConfig(tasks=["piqa"]))


@pytest.mark.parametrize(
    "keys",
    [
        {"max_kl": 0},
        {"max_perplexity_ratio": -1},
        {"min_top1_agreement": 1.5},
        {"max_accuracy_drop": {"piqa": 0}},
        {"max_accuracy_drop": {"quiz": 0.1}},
        {"confidence": 0.5},
        {"confidence": 1},
    ],
)
def test_thresholds_that_nothing_or_everything_reaches_are_refused(keys):
    with pytest.raises(ValidationError):
        GateConfig(**keys)
