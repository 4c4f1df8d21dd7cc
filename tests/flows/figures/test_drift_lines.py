"""The plot of the drift."""

import pytest

from flows.reports.figures.drift_lines import drift_plot
from normtweak_core.errors import InputError


def test_the_same_plot_is_the_same_bytes():
    series = {"rtn": [0.01, 0.2, 0.9], "gptq": [0.01, 0.1, 0.3]}
    first = drift_plot(series, "drift")
    assert first.startswith(b"\x89PNG")
    assert first == drift_plot(series, "drift")
    assert first != drift_plot({**series, "gptq": [0.01, 0.1, 0.2]}, "drift")


def test_series_of_different_lengths_are_refused():
    with pytest.raises(InputError, match=r"found lengths \{'a': 1, 'b': 2\}"):
        drift_plot({"a": [1.0], "b": [1.0, 2.0]}, "drift")


def test_a_plot_without_series_is_refused():
    with pytest.raises(InputError, match=r"found lengths \{\}"):
        drift_plot({}, "drift")
