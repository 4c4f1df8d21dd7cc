"""One-sided confidence bounds of what a gate asks about; scipy is imported where it is called.

The sampling unit is the window of a text, or the item of a task. Bounds of task items are exact:
Clopper and Pearson (Biometrika 26, 1934) invert the binomial test, so that the stated confidence is
kept for every number of items and every true share, 0 and 1 included. Bounds of means over windows
are Student's, with a least number of windows below which no bound is given.
"""

import math

from normtweak_core.lazy import lazy

stats = lazy("scipy.stats")  # half a second to import


def least_windows(confidence: float) -> int:
    """Return how many windows a bound of a mean needs at least.

    With ``n`` windows the largest one lies below the median of all windows with probability
    ``2**-n``. Where that is more than ``1 - confidence``, what was measured does not even bound
    what half of the text is like: 5 windows at 0.95, 7 at 0.99.
    """
    return math.ceil(-math.log2(1 - confidence))


def mean_bound(mean: float, stderr: float | None, windows: int, confidence: float) -> float:
    """Return the value that the mean over all text lies below with some confidence.

    ``mean + t * stderr`` with the quantile of Student's t of ``windows - 1`` degrees of freedom; a
    lower bound is ``-mean_bound(-mean, ...)``.

    Args:
        mean: Over the windows.
        stderr: Its standard error; None, of a single window: nothing is known.
        windows: How many.
        confidence: Such as 0.95.

    Returns:
        Infinity where the windows are too few for any bound; NaN where the mean is none.
    """
    if math.isnan(mean):
        return math.nan
    if stderr is None or windows < least_windows(confidence):
        return math.inf
    return mean + float(stats.t.ppf(confidence, windows - 1)) * stderr


def share_upper(count: int, of: int, confidence: float) -> float:
    """Return Clopper and Pearson's upper bound of a share; 1 where nothing was counted."""
    return 1.0 if count >= of else float(stats.beta.ppf(confidence, count + 1, of - count))


def share_lower(count: int, of: int, confidence: float) -> float:
    """Return Clopper and Pearson's lower bound of a share; 0 where nothing was counted."""
    return 1 - share_upper(of - count, of, confidence)


def drop_bound(lost: int, won: int, items: int, confidence: float) -> float:
    """Return the value that the true drop of accuracy lies below with some confidence.

    Of a random item let ``d`` be the probability that the models differ, and ``t`` that the float
    model is the one that is right if they do: the drop is ``d * (2 t - 1)``. Both are bounded after
    Clopper and Pearson, each with half of the error allowed, ``t`` given how many items differ.
    Both bounds hold with probability ``confidence`` at least (Bonferroni), and where they do the
    drop is at most ``d_upper * max(0, 2 t_upper - 1)``. On items without a difference this is
    ``1 - ((1 - confidence) / 2) ** (1 / items)``: it falls with their number and is never 0.

    Args:
        lost: Items that only the float model answers rightly.
        won: Items that only the quantized model answers rightly.
        items: All items, those on which the two agree included; none: nothing bounds the drop.
        confidence: Such as 0.95.
    """
    if not items:
        return math.inf
    each = (1 + confidence) / 2
    differ = share_upper(lost + won, items, each)
    return differ * max(0.0, 2 * share_upper(lost, lost + won, each) - 1)


def least_items(threshold: float, confidence: float) -> int:
    """Return how many items can show a drop below a threshold where the models agree on all."""
    if threshold >= 1:
        return 1
    return math.ceil(math.log((1 - confidence) / 2) / math.log1p(-threshold))


def least_tokens(threshold: float, confidence: float) -> float:
    """Return how many tokens can show a share above a threshold where the models agree on all."""
    if threshold >= 1:
        return math.inf
    return float(math.ceil(math.log(1 - confidence) / math.log(threshold)))
