"""The figures: the same numbers give the same bytes, and every number counts."""

from flows.reports.figures.polynomial import Curve, Example, curves_plot, examples_plot
from normtweak_core.polynomial.config import Cell


def curves(last: float = 0.1) -> list[Curve]:
    cells = [
        Cell(bits=8.0, start="pretrained", lr=1e-3),
        Cell(bits=1.0, start="random", lr=1e-4),
        Cell(bits=1.0, start="pretrained", lr=0.2, rank=4),
    ]
    return [Curve(cell, [(0, 0.5), (10, last)]) for cell in cells]


def test_equal_curves_are_equal_bytes():
    first = curves_plot(curves(), 0.05)
    assert first.startswith(b"\x89PNG")
    assert first == curves_plot(curves(), 0.05)
    assert first != curves_plot(curves(0.2), 0.05)
    assert first != curves_plot(curves(), 0.06)


def test_equal_examples_are_equal_bytes():
    x = [0.0, 0.5, 1.0]

    def one(height: float) -> Example:
        return Example((x, [0.1, 0.2, 0.3]), [0.0, 0.5, 1.0], {"float": (x, [0.0, height, 1.0])})

    first = examples_plot([one(0.5)] * 4)  # four: the last row is not full
    assert first.startswith(b"\x89PNG")
    assert first == examples_plot([one(0.5)] * 4)
    assert first != examples_plot([one(0.4)] * 4)
