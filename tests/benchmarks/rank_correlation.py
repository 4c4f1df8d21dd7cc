"""Rank correlation of a few points that come in groups, with p-values that few points allow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import permutation_test, spearmanr

EXACT_UP_TO = 8  # points: 40,320 pairings
RESAMPLES = 9_999


@dataclass(frozen=True)
class Correlation:
    """Spearman's correlation of n points, and how often chance alone gives one as large."""

    n: int
    rho: float
    p: float

    def __str__(self) -> str:
        return f"{self.rho:+.2f} (n {self.n}, p {self.p:.2g})"


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Return the correlation; two-sided p over all pairings, from 9 points on by Student's t.

    None where there is none: fewer than 3 points, or one side is constant.
    """
    if not _varies(x, y):
        return None
    rho, p = spearmanr(x, y)
    if len(x) <= EXACT_UP_TO:
        exact = permutation_test(
            (np.asarray(x),),
            lambda shuffled: spearmanr(shuffled, y).statistic,
            permutation_type="pairings",
            n_resamples=np.inf,
        )
        p = exact.pvalue
    return Correlation(len(x), float(rho), float(p))


def correlation_within(
    x: Sequence[float], y: Sequence[float], groups: Sequence[object]
) -> Correlation | None:
    """Return the mean correlation inside groups, with the p of shuffling inside them alone.

    A difference between the groups, such as one of width, is no evidence here. Groups in which one
    side is constant or that have fewer than 3 points are left out; None where all are.
    """
    random = np.random.default_rng(0)
    points, found, chance = 0, [], []
    for group in dict.fromkeys(groups):
        rows = [i for i, name in enumerate(groups) if name == group]
        left, right = np.take(x, rows), np.take(y, rows)
        if not _varies(left, right):
            continue
        a, b = _normed(_ranks(left)), _normed(_ranks(right))
        points += len(rows)
        found.append(a @ b)
        chance.append(random.permuted(np.tile(b, (RESAMPLES, 1)), axis=1) @ a)
    if not found:
        return None
    rho = float(np.mean(found))
    as_large = np.abs(np.mean(chance, axis=0)) >= abs(rho) - 1e-12
    return Correlation(points, rho, float((1 + as_large.sum()) / (1 + RESAMPLES)))


def _normed(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean()
    return centred / np.linalg.norm(centred)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return mean ranks, ties shared."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _varies(x: Sequence[float], y: Sequence[float]) -> bool:
    return len(x) >= 3 and bool(np.ptp(x)) and bool(np.ptp(y))
