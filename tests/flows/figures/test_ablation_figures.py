"""The figure of a study: the same numbers give the same bytes, and every number counts."""

import dataclasses

from flows.reports.figures.ablation import Bar, label_of, study_plot
from normtweak_core.ablation.config import StudiesConfig, value_name
from normtweak_core.ablation.reading import Measured


def bars(ratio: float = 1.1, kl: float = 0.1) -> list[Bar]:
    cells = [Measured(seed, 1.0 + seed / 10, 0.1 + seed, 0.9, 1.0) for seed in range(3)]
    return [Bar("several seeds", cells), Bar("one, alone", [Measured(0, ratio, kl, 0.9, 1.0)])]


def test_equal_studies_are_equal_bytes_and_every_number_is_drawn():
    base = bars()[0].cells
    first = study_plot("a study", bars(), base)
    assert first.startswith(b"\x89PNG")
    assert first == study_plot("a study", bars(), base)
    others = [
        study_plot("another", bars(), base),
        study_plot("a study", bars(ratio=1.2), base),
        study_plot("a study", bars(kl=0.2), base),
        study_plot("a study", bars(), [dataclasses.replace(base[0], kl=0.5), *base[1:]]),
        study_plot("a study", bars(kl=1e-4), base),  # on a logarithmic axis
    ]
    assert len({first, *others}) == 6


def test_labels_are_names_in_lines_that_fit():
    names = [
        value_name(study, value)
        for study, values in StudiesConfig().chosen().items()
        for value in values
    ]
    assert len(names) == 29
    for name in names:
        assert label_of(name).split() == name.split()
        assert max(map(len, label_of(name).splitlines())) <= 13, name
    assert label_of("generated, any first token") == "generated,\nany first\ntoken"
    assert label_of("+ norm tweaking") == "+ norm\ntweaking"
