"""The curves of a training as a picture: loss, held-out loss, learning rate."""

from matplotlib.figure import Figure

from flows.reports.figures.canvas import canvas

SMOOTHING = 0.95  # of the running mean of the loss


def training_figure(
    losses: list[float],
    rates: list[float],
    held_out: dict[int, float],
    measured_as: str,
    lambdas: list[list[float]] | None = None,
) -> Figure:
    """Return a picture with curves over the optimizer steps.

    Args:
        losses: Of every step, nats per token.
        rates: Learning rate of every step.
        held_out: Loss on held-out windows, by step.
        measured_as: What the held-out loss is called.
        lambdas: Of a ternary training: of every step, one a block.
    """
    figure = canvas(7, 9 if lambdas else 7.5)
    heights = (3, 2, 1.5, 1) if lambdas else (3, 2, 1)
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    top, measured, bottom = axes[0], axes[1], axes[-1]
    steps = range(1, len(losses) + 1)
    top.plot(steps, losses, linewidth=1, alpha=0.55, label="objective of a batch")
    top.plot(steps, running_mean(losses), linewidth=2, label="running mean")
    top.set(ylabel="nats per token")
    measured.plot(list(held_out), list(held_out.values()), marker="o", label=measured_as)
    measured.set(ylabel="nats per token")
    measured.legend(frameon=False)
    top.legend(frameon=False)
    if lambdas:
        middle = axes[2]
        for index, values in enumerate(zip(*lambdas, strict=True)):
            middle.plot(steps, values, linewidth=1.5, label=f"block {index}")
        middle.set(ylabel="lambda", ylim=(-0.05, 1.05))
        if len(lambdas[0]) <= 12:  # more names would cover the curves
            middle.legend(frameon=False, fontsize="small", ncols=3)
    bottom.plot(steps, rates, linewidth=1.5)
    bottom.set(ylabel="learning rate", xlabel="optimizer step")
    for one in axes:
        one.grid(visible=True, alpha=0.3)
    return figure


def running_mean(values: list[float], smoothing: float = SMOOTHING) -> list[float]:
    """Return the exponential running mean, each value corrected for its short history."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total = smoothing * total + (1 - smoothing) * value
        weight = smoothing * weight + (1 - smoothing)
        means.append(total / weight)
    return means
