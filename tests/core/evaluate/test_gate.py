"""What a gate asks of an evaluation."""

import math

import pytest
from pydantic import ValidationError

from normtweak_core.evaluate.config import EvaluationConfig
from normtweak_core.evaluate.gate import GateConfig, gate_failures, require_measured

METRICS = {
    **{
        "perplexity/ratio": 1.1,
        "nll_difference/mean": math.log(1.1),
        "nll_difference/stderr": 0.01,
    },
    **{"kl/mean": 0.05, "kl/stderr": 0.002, "top1_agreement": 0.9, "top1_agreement_stderr": 0.01},
    **{"windows": 64.0, "tokens": 64.0 * 127},
}
STUDENT = 1.6694022  # quantile of 0.95 at 63 degrees of freedom


def test_without_thresholds_everything_passes():
    assert gate_failures(GateConfig(), {}) == []
    assert not GateConfig().asks
    assert not GateConfig(confidence=0.9).asks
    assert all(GateConfig(**{key: 0.5}).asks for key in ("max_kl", "min_top1_agreement"))
    assert GateConfig(max_accuracy_drop={"piqa": 0.1}).asks


@pytest.mark.parametrize("confidence", [0.95, 0.99])
@pytest.mark.parametrize(
    ("key", "bound"),
    [
        ("max_perplexity_ratio", lambda t: 1.1 * math.exp(t * 0.01)),
        ("max_kl", lambda t: 0.05 + t * 0.002),
        ("min_top1_agreement", lambda t: 0.9 - t * 0.01),
    ],
)
def test_a_threshold_is_kept_to_up_to_its_bound(key, bound, confidence):
    quantile = {0.95: STUDENT, 0.99: 2.3870}[confidence]
    side = 1 if key.startswith("max") else -1
    for shift, passes in ((1e-4, True), (-1e-4, False)):
        gate = GateConfig(**{key: bound(quantile) + side * shift, "confidence": confidence})
        assert (gate_failures(gate, METRICS) == []) is passes


def test_each_missed_threshold_is_named_with_what_was_found():
    config = GateConfig(max_perplexity_ratio=1.05, max_kl=0.04, min_top1_agreement=0.95)
    how = "which with confidence 0.95 may be"
    assert gate_failures(config, METRICS) == [
        "perplexity/ratio must be at most 1.05 (gate.max_perplexity_ratio); found 1.1, "
        f"{how} 1.1185 by its 64 windows",
        f"kl/mean must be at most 0.04 (gate.max_kl); found 0.05, {how} 0.053339 by its 64 windows",
        "top1_agreement must be at least 0.95 (gate.min_top1_agreement); found 0.9, "
        f"{how} 0.88331 by its 64 windows",
    ]


@pytest.mark.parametrize("key", ["perplexity/ratio", "kl/mean", "top1_agreement"])
def test_a_number_that_is_none_keeps_to_nothing(key):
    gate = GateConfig(max_kl=9, max_perplexity_ratio=9, min_top1_agreement=0.01)
    nan = {key: math.nan} | ({"nll_difference/mean": math.nan} if "ratio" in key else {})
    (failure,) = gate_failures(gate, METRICS | nan)
    assert f"{key} must be" in failure
    assert "found nan" in failure


PERFECT = METRICS | {
    **{"perplexity/ratio": 1.0, "nll_difference/mean": 0.0, "nll_difference/stderr": 0.0},
    **{"kl/mean": 0.0, "kl/stderr": 0.0, "top1_agreement": 1.0, "top1_agreement_stderr": 0.0},
}
ANYTHING = {"max_perplexity_ratio": 2, "max_kl": 2, "min_top1_agreement": 0.5}


@pytest.mark.parametrize("key", list(ANYTHING))
def test_a_handful_of_windows_passes_no_gate(key):
    gate = GateConfig(**{key: ANYTHING[key]})
    assert gate_failures(gate, PERFECT | {"windows": 5.0}) == []
    for windows, words in ((4.0, "of 4 windows"), (1.0, "of 1 window")):
        few = {
            name: value for name, value in PERFECT.items() if windows > 1 or "stderr" not in name
        }
        (failure,) = gate_failures(gate, few | {"windows": windows})
        assert failure.endswith(f", {words}; at least 5 are needed")


def test_a_perfect_agreement_on_few_tokens_shows_no_more_than_its_tokens_can():
    gate = GateConfig(min_top1_agreement=0.99)
    (failure,) = gate_failures(gate, PERFECT | {"windows": 8.0, "tokens": 56.0})
    assert failure.endswith(  # 0.05 ** (1 / 56)
        "found 1, which with confidence 0.95 may be 0.94791 by its 8 windows; at least 299 tokens "
        "are needed"
    )
    assert gate_failures(gate, PERFECT | {"windows": 8.0, "tokens": 299.0}) == []


def task(lost: float, won: float, items: float) -> dict[str, float]:
    return {
        "piqa/acc/drop": (lost - won) / items,
        **{"piqa/acc/lost": lost, "piqa/acc/won": won, "piqa/items": items},
    }


def test_two_items_on_which_the_models_agree_pass_no_gate():
    gate = GateConfig(max_accuracy_drop={"piqa": 0.001}, confidence=0.99)
    assert gate_failures(gate, task(0, 0, 2)) == [
        "piqa/acc/drop must be at most 0.001 with confidence 0.99 (gate.max_accuracy_drop); found "
        "0, which may be 0.92929 by its 2 items; at least 5296 items are needed"
    ]
    assert gate_failures(gate, task(0, 0, 5295)) != []
    assert gate_failures(gate, task(0, 0, 5296)) == []


def test_a_drop_must_be_below_the_threshold_with_the_confidence_asked_for():
    found = task(30, 20, 1000)
    for threshold, confidence, passes in ((0.04, 0.95, True), (0.03, 0.95, False)):
        gate = GateConfig(max_accuracy_drop={"piqa": threshold}, confidence=confidence)
        assert (gate_failures(gate, found) == []) is passes
    (failure,) = gate_failures(
        GateConfig(max_accuracy_drop={"piqa": 0.03}, confidence=0.8), task(90, 20, 1000)
    )
    assert failure.endswith("found 0.07, which may be 0.090365 by its 1000 items")


def test_tasks_without_items_pass_no_gate():
    gate = GateConfig(max_accuracy_drop={"piqa": 1.0})
    empty = {"piqa/acc/drop": math.nan, "piqa/acc/lost": 0, "piqa/acc/won": 0, "piqa/items": 0}
    (failure,) = gate_failures(gate, empty)
    assert "which may be inf by its 0 items; at least 1 items are needed" in failure


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
