"""The plot of the drift."""

import pytest

from flows.reports.figures.canvas import as_png
from flows.reports.figures.drift_lines import drift_figure
from normtweak_core.errors import InputError


def test_the_same_plot_is_the_same_bytes():
    series = {"rtn": [0.01, 0.2, 0.9], "gptq": [0.01, 0.1, 0.3]}
    first = as_png(drift_figure(series))
    assert first.startswith(b"\x89PNG")
    assert first == as_png(drift_figure(series))
    assert first != as_png(drift_figure({**series, "gptq": [0.01, 0.1, 0.2]}))


def test_series_of_different_lengths_are_refused():
    with pytest.raises(InputError, match=r"found lengths \{'a': 1, 'b': 2\}"):
        drift_figure({"a": [1.0], "b": [1.0, 2.0]})


def test_a_plot_without_series_is_refused():
    with pytest.raises(InputError, match=r"found lengths \{\}"):
        drift_figure({})
