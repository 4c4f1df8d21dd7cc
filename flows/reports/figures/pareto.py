"""Quality against size: which models no other beats in both, and a picture of all of them."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flows.reports.document import Section
from flows.reports.figures.canvas import canvas, drawing, is_wide
from normtweak_core.errors import InputError
from normtweak_core.evaluate.metric import Metric

SIZES = "Size counts weights, configuration and tokenizer; a model on the front is beaten by none."


Model = tuple[str, float, Metric]  # name, bytes, perplexity


class Candidate(NamedTuple):
    """A model as a point; of both values, less is better."""

    name: str
    size: float  # bytes
    loss: float  # perplexity, or another measure of what is lost
    error: float | None = None  # one standard error of the loss


def size_section(models: Sequence[Model]) -> Section:
    """Return quality against size."""
    candidates = [Candidate(name, size, one.value, one.stderr) for name, size, one in models]
    front = [candidates[index].name for index in pareto_front(candidates)]
    bars = "Bars are one standard error. " if any(one.error for one in candidates) else ""
    caption = (
        f"Perplexity against size; both are better the smaller. {bars}{SIZES} On it: "
        f"{', '.join(front)}."
    )
    figure = size_quality_figure(candidates, "perplexity")
    return Section("Quality against size", [drawing(figure, "pareto", caption)])


def pareto_front(points: Sequence[Candidate]) -> list[int]:
    """Return the indices of the points that none other beats, by rising size.

    A point is beaten by one that is at most as large and at most as bad, and better in either. Of
    points equal in both none beats the other, so all of them are on the front.
    """
    front: list[int] = []
    order = sorted(range(len(points)), key=lambda i: (points[i].size, points[i].loss))
    for index in order:
        last = points[front[-1]] if front else None
        point = points[index]
        equal = last is not None and (last.size, last.loss) == (point.size, point.loss)
        if last is None or point.loss < last.loss or equal:
            front.append(index)
    return front


def size_quality_figure(points: Sequence[Candidate], measure: str) -> Figure:
    """Return a picture of quality against size, the front drawn as steps between its models.

    An axis is logarithmic where its values span much.

    Args:
        points: At least one; names are drawn as they are.
        measure: What the loss is called.

    Raises:
        InputError: There is no point.
    """
    if not points:
        raise InputError("quality against size needs at least one model; found none")
    front = pareto_front(points)
    figure = canvas(7, 4.4)
    axes = figure.add_subplot()
    megabytes = [point.size / 1e6 for point in points]
    losses = [point.loss for point in points]
    axes.plot(
        [megabytes[i] for i in front],
        [losses[i] for i in front],
        drawstyle="steps-post",  # between two models there is none: the smaller one is what fits
        linewidth=1.5,
        zorder=1,
        label="Pareto front",
    )
    beaten = [index for index in range(len(points)) if index not in front]
    for number, (chosen, label) in enumerate(((front, "on the front"), (beaten, "beaten")), 2):
        if chosen:
            axes.errorbar(
                [megabytes[i] for i in chosen],
                [losses[i] for i in chosen],
                yerr=[points[i].error or 0.0 for i in chosen],
                fmt="o" if chosen is front else "x",
                color=f"C{number - 2 if chosen is front else 3}",
                capsize=2,
                elinewidth=1,
                label=label,
            )
    for values, scale in ((megabytes, axes.set_xscale), (losses, axes.set_yscale)):
        if is_wide(values):
            scale("log")
    axes.set(xlabel="size in MB", ylabel=measure)
    axes.margins(0.12)
    _name_points(axes, points)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _name_points(axes: Axes, points: Sequence[Candidate]) -> None:
    """Write each name beside its point, to the side where there is room."""
    axes.get_xlim()  # settles the limits, which are stale until somebody asks
    for point in points:
        place = (point.size / 1e6, point.loss)
        along = axes.transAxes.inverted().transform(axes.transData.transform(place))[0]
        left = along > 0.5
        axes.annotate(
            shortened(point.name),
            place,
            xytext=(-6 if left else 6, 5),
            textcoords="offset points",
            horizontalalignment="right" if left else "left",
            fontsize="small",
            parse_math=False,  # a dollar sign in a name is a dollar sign
        )


def shortened(name: str, longest: int = 40) -> str:
    """Return a name that fits a picture: the middle of a long one left out, one line."""
    name = " ".join(name.split())
    half = longest // 2
    return name if len(name) <= longest else f"{name[: half - 1]}…{name[-half:]}"
