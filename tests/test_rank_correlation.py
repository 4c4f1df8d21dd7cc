"""The statistics of the drift study, against counting by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.benchmarks.rank_correlation import correlation_within, rank_correlation


def test_few_points_have_the_p_of_counting_all_pairings():
    x, y = [1.0, 2.0, 4.0, 3.0, 5.0], [2.0, 1.0, 5.0, 3.0, 9.0]
    found = rank_correlation(x, y)
    every = [spearmanr(order, y).statistic for order in itertools.permutations(x)]
    beyond = sum(rho >= found.rho - 1e-9 for rho in every)
    assert found.n == 5
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    assert found.p == pytest.approx(min(1, 2 * beyond / math.factorial(5)))
    perfect = rank_correlation([1, 2, 3, 4], [10, 20, 30, 40])
    assert (perfect.rho, perfect.p) == (pytest.approx(1.0), pytest.approx(2 / 24))


def test_many_points_have_scipys_p():
    random = np.random.default_rng(1)
    x = random.random(20)
    y = x + random.random(20)
    found = rank_correlation(x, y)
    assert (found.rho, found.p) == pytest.approx(tuple(spearmanr(x, y)))


def test_a_difference_between_groups_is_no_evidence_inside_them():
    groups = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    level = np.repeat([0.0, 10.0, 20.0], 4)
    x = level + np.array([1, 2, 3, 4] * 3)
    y = level + np.array([2, 4, 1, 3, 3, 1, 4, 2, 2, 4, 1, 3])
    assert rank_correlation(x, y).p < 0.001
    inside = correlation_within(x, y, groups)
    assert inside.rho == pytest.approx(0.0)
    assert inside.p == 1.0
    agreeing = correlation_within(x, x, groups)
    assert (agreeing.n, agreeing.rho) == (12, pytest.approx(1.0))
    assert agreeing.p < 0.005  # 2 of 24^3 shuffles


def test_ties_share_their_rank():
    x, y = [1.0, 1.0, 2.0, 3.0], [1.0, 2.0, 2.0, 3.0]
    assert correlation_within(x, y, "aaaa").rho == pytest.approx(spearmanr(x, y).statistic)


def test_too_few_or_constant_points_have_no_correlation():
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert correlation_within([1, 2, 1, 2], [1, 2, 1, 2], "aabb") is None
    left_out = correlation_within([1, 2, 3, 7, 7, 7], [1, 3, 2, 1, 2, 3], "aaabbb")
    assert left_out == correlation_within([1, 2, 3], [1, 3, 2], "aaa")
