"""What the cells of a study say: means, spreads, and whether a value differs from the base.

A cell is compared with the base of its own seed. Over three seeds the divergence of one recipe
moves more than that of two recipes with one seed differs, since another seed brings other
calibration text for both.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from normtweak_core.lazy import lazy

stats = lazy("scipy.stats")  # half a second to import, at the end of hours

CONFIDENCE = 0.95  # two-sided, of one comparison

Verdict = Literal["base", "better", "worse", "not shown", "not judged"]


@dataclass(frozen=True)
class Measured:
    """The numbers of one cell."""

    seed: int
    ratio: float  # perplexity, times that of the float model
    kl: float  # from the float model, nats per token
    agreement: float  # share of positions with the same most probable token
    seconds: float  # to make the quantized model, as if nothing of it had been there


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; None for a single seed."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of one value per seed, at least one."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation)


@dataclass(frozen=True)
class Comparison:
    """A value of a study beside the base, seed by seed."""

    ratio: Spread  # perplexity over that of the base, less one
    kl: Spread  # divergence less that of the base, nats per token
    verdict: Verdict  # on the divergence


def compare(cells: Sequence[Measured], base: Sequence[Measured], same: bool) -> Comparison:
    """Return how a value differs from the base.

    With several seeds a difference is shown where zero lies outside the 95 % interval of Student's
    t of the paired differences; with one seed, where it is larger than the range of the base over
    its own seeds, and nothing is judged where the base has one seed, too. The divergence decides:
    perplexity follows it, with more noise.

    Args:
        cells: Of the value, each seed once.
        base: Of the base, with at least the same seeds.
        same: The value is that of the base.

    Raises:
        ValueError: A seed has no base.
    """
    of_seed = {one.seed: one for one in base}
    if absent := [cell.seed for cell in cells if cell.seed not in of_seed]:
        raise ValueError(f"every seed needs a cell of the base; seed {absent[0]} has none")
    kl = [cell.kl - of_seed[cell.seed].kl for cell in cells]
    ratio = [cell.ratio / of_seed[cell.seed].ratio - 1 for cell in cells]
    verdict = "base" if same else _verdict(kl, [one.kl for one in base])
    return Comparison(Spread.of(ratio), Spread.of(kl), verdict)


def _verdict(differences: list[float], base: list[float]) -> Verdict:
    spread = Spread.of(differences)
    if spread.deviation is not None:
        limit = _student(len(differences) - 1) * spread.deviation / math.sqrt(len(differences))
    elif len(base) > 1:
        limit = max(base) - min(base)
    else:
        return "not judged"
    if abs(spread.mean) <= limit:
        return "not shown"
    return "better" if spread.mean < 0 else "worse"


def _student(freedom: int) -> float:
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom))
