"""What a gate asks of an evaluation."""

import math

import pytest
from pydantic import ValidationError

from normtweak_core.evaluate.gate import GateConfig, gate_failures

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


@pytest.mark.parametrize(
    "keys", [{"max_kl": 0}, {"max_perplexity_ratio": -1}, {"min_top1_agreement": 1.5}]
)
def test_thresholds_that_nothing_or_everything_reaches_are_refused(keys):
    with pytest.raises(ValidationError):
        GateConfig(**keys)
