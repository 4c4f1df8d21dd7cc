from collections import Counter

import pytest
import torch

from normtweak_core.calibration.ngrams import duplicate_windows, ngram_statistics


def grams(row, order):
    return [tuple(row[i : i + order]) for i in range(len(row) - order + 1)]


def slow_statistics(rows, order):
    """Count with tuples and sets."""
    distinct = sum(len(set(grams(row, order))) / len(grams(row, order)) for row in rows) / len(rows)
    everything = [gram for row in rows for gram in grams(row, order)]
    covered = []
    for row in rows:
        counts = Counter(grams(row, order))
        # the smallest of equally common ones, as torch.mode picks
        commonest = min(gram for gram in counts if counts[gram] == max(counts.values()))
        positions = {
            i + j
            for i, gram in enumerate(grams(row, order))
            if gram == commonest
            for j in range(order)
        }
        covered.append(len(positions) > len(row) / 2)
    return distinct, len(set(everything)) / len(everything), covered


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 50, 150_000])
def test_the_statistics_are_those_of_slow_counting(seeded, vocabulary):
    ids = torch.randint(vocabulary, (6, 33), generator=seeded(vocabulary))
    ids[2, 5:] = 0  # one window that is mostly one token
    ids[4] = torch.tensor([1, 2, 3] * 11) % vocabulary  # and one that is a loop
    for order, statistics in ngram_statistics(ids).items():
        distinct, distinct_in_set, covered = slow_statistics(ids.tolist(), order)
        assert statistics.distinct_in_window == pytest.approx(distinct)
        assert statistics.distinct_in_set == pytest.approx(distinct_in_set)
        assert statistics.covered.tolist() == covered


def test_a_loop_is_covered_by_the_ngram_it_repeats_only():
    ids = torch.tensor([[5, 6, 7] * 20])
    covered = {n: s.covered.tolist() for n, s in ngram_statistics(ids).items()}
    assert covered == {1: [False], 2: [True], 3: [True], 4: [True]}


def test_duplicates_are_windows_equal_to_an_earlier_one():
    ids = torch.tensor([[1, 2], [1, 3], [1, 2], [1, 2], [2, 1]])
    assert duplicate_windows(ids) == 2
