"""Flat names of metrics are taken apart in one place, and put together again as they were."""

import pytest

from normtweak_core.evaluate.metric import Metric, read_metrics
from normtweak_core.evaluate.scores import Comparison, FloatResult
from normtweak_core.evaluate.task_scores import TaskComparison, TaskScores

FLAT = {
    "perplexity/float": 4.5,
    "perplexity/float_stderr": 0.25,
    "perplexity/ratio": 1.25,
    "kl/mean": 0.5,
    "kl/stderr": 0.125,
    "kl/mean_float32": 0.625,
    "top1_agreement": 0.75,
    "top1_agreement_stderr": 0.0625,
    "piqa/acc/drop": -0.125,
    "piqa/acc/drop_stderr": 0.03125,
    "piqa/acc/mcnemar_p": 0.5,
    "piqa/perplexity/quantized": 8.0,
    "size_bytes": 1000.0,
}
PARTS = {  # name, of, what people call it
    "perplexity/float": ("perplexity", "float", "perplexity/float"),
    "perplexity/ratio": ("perplexity", "ratio", "perplexity/ratio"),
    "kl/mean": ("kl", "", "kl"),
    "kl/mean_float32": ("kl/mean_float32", "", "kl/mean_float32"),
    "top1_agreement": ("top1_agreement", "", "top1_agreement"),
    "piqa/acc/drop": ("piqa/acc", "drop", "piqa/acc/drop"),
    "piqa/acc/mcnemar_p": ("piqa/acc", "mcnemar_p", "piqa/acc/mcnemar_p"),
    "piqa/perplexity/quantized": ("piqa/perplexity", "quantized", "piqa/perplexity/quantized"),
    "size_bytes": ("size_bytes", "", "size_bytes"),
}


@pytest.mark.parametrize("flat", PARTS)
def test_a_name_is_taken_apart(flat):
    found = read_metrics(FLAT)
    assert list(found) == list(PARTS)
    one = found[flat]
    assert (one.name, one.of, one.full_name) == PARTS[flat]
    assert one.value == FLAT[flat]


def test_a_standard_error_lies_with_its_value():
    found = read_metrics(FLAT)
    assert {name: one.stderr for name, one in found.items() if one.stderr is not None} == {
        "perplexity/float": 0.25,
        "kl/mean": 0.125,
        "top1_agreement": 0.0625,
        "piqa/acc/drop": 0.03125,
    }


def test_accuracies_and_differences_are_told_from_other_numbers():
    found = read_metrics(FLAT | {"nll_difference/mean": 0.25})
    assert [name for name, one in found.items() if one.is_accuracy] == ["piqa/acc/drop"]
    differences = [name for name, one in found.items() if one.is_difference]
    assert differences == ["piqa/acc/drop", "nll_difference/mean"]


def test_what_an_evaluation_writes_is_read_back_whole():
    float_result = FloatResult(tokens=8, window_nll=[1.0, 2.0])
    quantized = FloatResult(tokens=8, window_nll=[1.5, 2.25])
    both = Comparison(
        float_result=float_result,
        quantized_result=quantized,
        window_kl=[0.5, 0.25],
        window_kl_reverse=[0.25, 0.125],
        window_agreement=[0.5, 0.75],
    )
    scores = TaskScores(task="piqa", version="1", values={"acc": [0.0, 1.0, 1.0]})
    flat = both.metrics() | TaskComparison(float_scores=scores, quantized_scores=scores).metrics()
    again: dict[str, float] = {}
    for one in read_metrics(flat).values():
        again |= one.named()
    assert again == flat
    assert Metric("kl", 0.5, flat="kl/mean").named() == {"kl/mean": 0.5}
