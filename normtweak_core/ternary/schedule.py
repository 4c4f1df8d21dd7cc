"""How fast each block becomes ternary: lambda of a block as a function of the step.

With lambda 0 a linear computes with its float weight and input, with lambda 1 with the quantized
ones. Source: arXiv 2505.08823 asks for a "gradual, layer-wise" schedule and does not say which;
these are readings of it, with the curves of the Hugging Face blog on 1.58-bit fine-tuning.
"""

import math

from normtweak_core.ternary.config import TernaryConfig

SIGMOID_SLOPE = 15.0  # of the blog's values (15 to 100) the one that rises over most of the time
EXPONENT = 4  # 1 - (1 - t)**k; the blog's k are 4 to 10, all with a spike at the first step


def rise(kind: str, progress: float | int) -> float:
    """Return how far a curve has risen, 0 at progress 0 and 1 at progress 1.

    Args:
        kind: ``linear``, ``cosine``, ``sigmoid`` or ``exponential``.
        progress: Share of the rise that has passed; clipped to 0..1.
    """
    t = min(1.0, max(0.0, progress))
    if kind == "linear":
        return t
    if kind == "cosine":
        return 0.5 * (1 - math.cos(math.pi * t))
    if kind == "exponential":
        return 1 - (1 - t) ** EXPONENT
    # The logistic curve only nears 0 and 1; stretched, it starts and ends there.
    low, high = _logistic(-0.5), _logistic(0.5)
    return (_logistic(t - 0.5) - low) / (high - low)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-SIGMOID_SLOPE * x))


def lambdas(config: TernaryConfig, step: int, num_blocks: int) -> list[float]:
    """Return lambda of every block at a step, first block first.

    ``scope: layerwise`` lets the blocks rise one after another, each over the same number of
    steps; ``overlap`` is the share of a rise during which the next block rises too. Both scopes
    end at ``rising * steps``.
    """
    total = config.rising * config.steps
    if total == 0:
        return [1.0] * num_blocks
    if config.scope == "global":
        starts, length = [0.0] * num_blocks, total
    else:
        spacing = 1 - config.overlap  # in units of one rise
        length = total / (1 + (num_blocks - 1) * spacing)
        starts = [i * spacing * length for i in range(num_blocks)]
        if config.order == "backward":
            starts.reverse()
    first = config.lambda_start
    return [
        first + (1 - first) * rise(config.schedule, (step - start) / length) for start in starts
    ]
