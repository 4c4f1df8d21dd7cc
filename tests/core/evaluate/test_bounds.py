"""Bounds: by hand, and the confidence they claim against how often they hold."""

import itertools
import math
from functools import lru_cache

import numpy as np
import pytest

from normtweak_core.evaluate.bounds import (
    drop_bound,
    least_items,
    least_tokens,
    least_windows,
    mean_bound,
    share_lower,
    share_upper,
)

# Probabilities that only the float, and that only the quantized model is right.
TRUTHS = [(0, 0), (1, 0), (0, 1), (0.5, 0.5), (0.02, 0.0), (0.001, 0.001), (0.3, 0.1), (0.98, 0.01)]


def coverage_oracle(lost: float, won: float, items: int, confidence: float) -> float:
    """Sum the probability of every outcome whose bound holds; no simulation, for few items."""
    held = 0.0
    for b, c in itertools.product(range(items + 1), repeat=2):
        if b + c > items:
            continue
        ways = math.comb(items, b) * math.comb(items - b, c)
        chance = ways * lost**b * won**c * (1 - lost - won) ** (items - b - c)
        if chance and drop_bound(b, c, items, confidence) >= lost - won - 1e-12:
            held += chance
    return held


@pytest.mark.parametrize("confidence", [0.8, 0.99])
@pytest.mark.parametrize(("lost", "won"), TRUTHS)
@pytest.mark.parametrize("items", [1, 2, 15])
def test_a_drop_lies_below_its_bound_as_often_as_claimed(lost, won, items, confidence):
    assert coverage_oracle(lost, won, items, confidence) >= confidence - 1e-12


@pytest.mark.parametrize(("lost", "won"), [*TRUTHS, (0.05, 0.04)])
def test_a_drop_lies_below_its_bound_as_often_as_claimed_on_many_items(lost, won):
    random, bound = np.random.default_rng(0), lru_cache(drop_bound)
    outcomes = random.multinomial(2000, [lost, won, 1 - lost - won], size=2000)
    held = [bound(int(b), int(c), 2000, 0.9) >= lost - won - 1e-12 for b, c, _ in outcomes]
    assert np.mean(held) >= 0.9 - 3 * math.sqrt(0.9 * 0.1 / 2000)


def test_the_normal_bound_that_was_used_before_does_not_hold_what_it_claims():
    """That the tests above can fail: it is 0 wherever the models agree on all items."""
    outcomes = np.random.default_rng(0).multinomial(200, [0.002, 0, 0.998], size=2000)
    drops = outcomes[:, 0] / 200
    errors = np.sqrt(drops * (1 - drops) / 199)
    assert np.mean(drops + 1.6449 * errors >= 0.002) < 0.7


def test_bounds_of_a_drop_by_hand():
    # No item differs: (1 - d)^n = 0.005 at the bound of d.
    assert drop_bound(0, 0, 2, 0.99) == pytest.approx(1 - math.sqrt(0.005))
    assert drop_bound(0, 0, 1000, 0.95) == pytest.approx(1 - 0.025**0.001)
    assert drop_bound(1, 0, 1, 0.95) == 1.0
    assert drop_bound(0, 0, 0, 0.95) == math.inf
    assert drop_bound(0, 40, 50, 0.95) == 0.0  # better with that confidence
    # 30 lost, 20 won of 1000: quantiles 0.975 of Beta(51, 950) and of Beta(31, 20).
    assert drop_bound(30, 20, 1000, 0.95) == pytest.approx(0.0653905 * (2 * 0.7359216 - 1))


@pytest.mark.parametrize(("threshold", "confidence"), [(0.001, 0.99), (0.02, 0.95), (0.5, 0.6)])
def test_the_least_number_of_items_is_the_first_that_can_pass(threshold, confidence):
    least = least_items(threshold, confidence)
    assert drop_bound(0, 0, least, confidence) <= threshold
    assert drop_bound(0, 0, least - 1, confidence) > threshold


def test_thresholds_that_one_or_no_number_of_samples_can_show():
    assert least_items(1.0, 0.99) == 1
    assert least_tokens(1.0, 0.95) == math.inf
    least = int(least_tokens(0.99, 0.95))
    assert share_lower(least, least, 0.95) >= 0.99 > share_lower(least - 1, least - 1, 0.95)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("of", [1, 7, 400])
def test_a_share_lies_within_its_bounds_as_often_as_claimed(share, of):
    chances = [math.comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(of + 1)]
    uppers = [share_upper(k, of, 0.95) >= share for k in range(of + 1)]
    lowers = [share_lower(k, of, 0.95) <= share for k in range(of + 1)]
    assert sum(itertools.compress(chances, uppers)) >= 0.95 - 1e-9
    assert sum(itertools.compress(chances, lowers)) >= 0.95 - 1e-9


def test_a_mean_lies_below_its_bound_by_the_quantile_of_student():
    assert mean_bound(0.2, 0.01, 9, 0.95) == pytest.approx(0.2 + 1.8595480 * 0.01)
    assert mean_bound(0.2, 0.01, 100_000, 0.99) == pytest.approx(0.2 + 2.3263 * 0.01, rel=1e-4)
    assert math.isnan(mean_bound(math.nan, 0.01, 9, 0.95))


def test_a_handful_of_windows_bounds_nothing():
    assert [least_windows(confidence) for confidence in (0.75, 0.95, 0.99)] == [2, 5, 7]
    assert mean_bound(0.0, 0.0, 4, 0.95) == math.inf
    assert mean_bound(0.0, 0.0, 5, 0.95) == 0.0
    assert mean_bound(0.0, None, 1, 0.51) == math.inf
