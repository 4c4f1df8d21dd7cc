"""Means, spreads and verdicts, against numpy and scipy."""

import math

import numpy
import pytest
from scipy import stats

from normtweak_core.ablation.reading import Measured, Spread, compare


def cells(kl: list[float], ratio: list[float] | None = None) -> list[Measured]:
    ratios = ratio or [1 + one for one in kl]
    return [
        Measured(seed, r, one, 0.9, 1.0)
        for seed, (one, r) in enumerate(zip(kl, ratios, strict=True))
    ]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_mean_and_deviation_are_those_of_numpy(count):
    values = numpy.random.default_rng(count).normal(5, 2, count)
    spread = Spread.of(values.tolist())
    assert spread.mean == pytest.approx(values.mean(), rel=1e-12)
    assert spread.deviation == pytest.approx(values.std(ddof=1), rel=1e-12)


def test_one_value_has_no_deviation():
    assert Spread.of([3.0]) == Spread(3.0, None)


def test_differences_are_taken_seed_by_seed():
    base = cells([0.10, 0.20, 0.40], [1.1, 1.2, 1.4])
    # The value lies 0.01 above its base with every seed, whatever the seed does to both.
    value = cells([0.11, 0.21, 0.41], [1.21, 1.32, 1.54])
    found = compare(value, base, same=False)
    assert found.kl.mean == pytest.approx(0.01)
    assert found.kl.deviation == pytest.approx(0, abs=1e-12)
    assert found.ratio.mean == pytest.approx(0.1)
    assert found.verdict == "worse"
    assert compare(base, value, same=False).verdict == "better"
    # The order of the cells says nothing, and a base may have more seeds than a value.
    assert compare(value[::-1], base, same=False).kl.mean == pytest.approx(0.01)
    assert compare(value[:2], base, same=False).ratio.mean == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_verdict_is_that_of_a_paired_t_test(seed, count):
    random = numpy.random.default_rng(100 * count + seed)
    base = random.normal(0.3, 0.02, count)
    value = base + random.normal(0.01, 0.008, count)
    shown = stats.ttest_rel(value, base).pvalue < 0.05
    expected = ("worse" if (value - base).mean() > 0 else "better") if shown else "not shown"
    assert compare(cells(value.tolist()), cells(base.tolist()), False).verdict == expected


def test_both_outcomes_of_the_t_test_occur_above():
    def shown(count, seed):
        random = numpy.random.default_rng(100 * count + seed)
        base = random.normal(0.3, 0.02, count)
        return stats.ttest_rel(base + random.normal(0.01, 0.008, count), base).pvalue < 0.05

    assert {shown(count, seed) for count in (2, 3, 5) for seed in range(12)} == {True, False}


@pytest.mark.parametrize(
    ("kl", "verdict"),
    [(0.131, "worse"), (0.069, "better"), (0.129, "not shown"), (0.1, "not shown")],
)
def test_one_seed_has_to_differ_by_more_than_the_base_differs_from_itself(kl, verdict):
    base = cells([0.10, 0.09, 0.12])  # a range of 0.03
    assert compare(cells([kl]), base, same=False).verdict == verdict


def test_one_seed_beside_one_of_the_base_is_not_judged():
    found = compare(cells([0.9]), cells([0.1]), same=False)
    assert (found.verdict, found.kl.mean) == ("not judged", pytest.approx(0.8))
    assert found.kl.deviation is None


def test_equal_results_show_no_difference():
    assert compare(cells([0.1, 0.2]), cells([0.1, 0.2]), same=False).verdict == "not shown"
    assert compare(cells([0.1, 0.2]), cells([0.1, 0.2]), same=True).verdict == "base"


def test_a_seed_without_a_base_is_an_error():
    with pytest.raises(ValueError, match="every seed needs a cell of the base; seed 1 has none"):
        compare(cells([0.1, 0.2]), cells([0.1]), same=False)
    assert math.isfinite(compare(cells([0.1]), cells([0.1, 0.2]), same=False).ratio.mean)
