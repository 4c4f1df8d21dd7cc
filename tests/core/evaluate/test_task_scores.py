"""Scores of tasks: values by hand, and the paired tests against their definitions."""

import math

import pytest

from normtweak_core.evaluate.task_scores import TaskComparison, TaskScores


def scores(*values: float, **others: list[float]) -> TaskScores:
    return TaskScores(task="piqa", version="1.0", values={"acc": list(values), **others})


def test_accuracy_and_its_error_are_those_of_the_items():
    flat = scores(1, 1, 0, 1, acc_norm=[0, 0, 0, 1]).metrics("float")
    assert flat == {
        "piqa/acc/float": 0.75,
        "piqa/acc/float_stderr": pytest.approx(math.sqrt(0.75 * 0.25 / 3)),
        "piqa/acc_norm/float": 0.25,
        "piqa/acc_norm/float_stderr": pytest.approx(math.sqrt(0.75 * 0.25 / 3)),
    }


def test_perplexity_is_that_of_the_answers():
    flat = scores(1, 0, loglikelihood=[-1.0, -3.0]).metrics("float")
    assert flat["piqa/perplexity/float"] == pytest.approx(math.exp(2))
    assert flat["piqa/perplexity/float_stderr"] == pytest.approx(math.exp(2))  # std sqrt(2)/sqrt(2)


def test_the_drop_is_paired():
    both = TaskComparison(float_scores=scores(1, 1, 0, 1), quantized_scores=scores(1, 0, 0, 1))
    assert both.drop().mean == 0.25
    assert both.drop().stderr == pytest.approx(0.25)  # differences 0 1 0 0
    assert both.metrics()["piqa/acc/drop"] == 0.25


def test_what_a_gate_reads_is_counted():
    both = TaskComparison(float_scores=scores(1, 1, 0, 1), quantized_scores=scores(0, 0, 1, 1))
    flat = both.metrics()
    assert (flat["piqa/acc/lost"], flat["piqa/acc/won"], flat["piqa/items"]) == (2, 1, 4)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (5, 0), (9, 2), (3, 8)])
def test_mcnemar_is_the_binomial_test_on_the_items_that_differ(lost, won):
    first = [1.0] * lost + [0.0] * won + [1.0] * 7
    second = [0.0] * lost + [1.0] * won + [1.0] * 7
    both = TaskComparison(float_scores=scores(*first), quantized_scores=scores(*second))
    n, k = lost + won, max(lost, won)
    tail = sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n
    assert both.mcnemar() == pytest.approx(min(1.0, 2 * tail))
