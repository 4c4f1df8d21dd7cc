"""Quality against size: the front by its definition, and the picture."""

import random

import pytest

from flows.reports.figures.inline_svg import inline_svg
from flows.reports.figures.pareto import Candidate, pareto_front, shortened, size_quality_figure
from normtweak_core.errors import InputError


def beaten(point: Candidate, points: list[Candidate]) -> bool:
    return any(
        other.size <= point.size
        and other.loss <= point.loss
        and (other.size, other.loss) != (point.size, point.loss)
        for other in points
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_other_beats(seed):
    draw = random.Random(seed)
    # Few values, so that sizes, losses and whole points repeat.
    points = [
        Candidate(f"m{i}", float(draw.randrange(5)), float(draw.randrange(5)))
        for i in range(draw.randrange(1, 12))
    ]
    front = pareto_front(points)
    assert sorted(front) == [i for i, point in enumerate(points) if not beaten(point, points)]
    assert [points[i].size for i in front] == sorted(points[i].size for i in front)


def test_the_front_of_nothing_is_empty_and_has_no_picture():
    assert pareto_front([]) == []
    with pytest.raises(InputError, match="needs at least one model; found none"):
        size_quality_figure([], "perplexity")


def test_every_model_is_drawn_and_wide_ranges_are_logarithmic():
    points = [Candidate("a$b$", 1e6, 5.0, 0.5), Candidate("worse", 2e6, 900.0)]
    (axes,) = size_quality_figure(points, "perplexity").axes
    assert {text.get_text() for text in axes.texts} == {"a$b$", "worse"}
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    labels = {text.get_text() for text in axes.get_legend().get_texts()}
    assert labels == {"Pareto front", "on the front", "beaten"}


@pytest.mark.parametrize("largest", [4e6, 400e6])
def test_names_are_written_to_the_side_where_there_is_room(largest):
    points = [Candidate("left", 1e6, 5.0), Candidate("right", largest, 4.0)]
    (axes,) = size_quality_figure(points, "perplexity").axes
    sides = {text.get_text(): text.get_horizontalalignment() for text in axes.texts}
    assert sides == {"left": "left", "right": "right"}
    assert axes.get_xscale() == ("log" if largest > 30e6 else "linear")


def test_equal_pictures_are_equal_text_and_names_tell_them_apart():
    points = [Candidate("a", 1.0, 5.0), Candidate("b", 2.0, 3.0)]
    first = inline_svg(size_quality_figure(points, "perplexity"), "one")
    assert first == inline_svg(size_quality_figure(points, "perplexity"), "one")
    second = inline_svg(size_quality_figure(points, "perplexity"), "two")
    assert first != second
    assert first.replace("one-", "two-") == second


def test_a_picture_in_a_page_brings_no_style_script_font_or_address():
    drawn = inline_svg(size_quality_figure([Candidate("<b>&", 1.0, 5.0)], "<i>"), "hostile")
    assert drawn.startswith("<svg ")
    assert drawn.endswith("</svg>")
    for absent in ("<style", "<script", "<!--", "<text", "<b>", "<i>", "http", "#000000"):
        assert absent not in drawn
    assert "var(--line-0, " in drawn
    assert "currentColor" in drawn


def test_a_long_name_keeps_its_ends():
    assert shortened("short") == "short"
    assert shortened("two\nlines") == "two lines"
    name = shortened("a" * 40 + "b" * 40)
    assert name == "a" * 19 + "…" + "b" * 20
