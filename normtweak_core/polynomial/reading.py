"""What the numbers of the study say about its two claims, in figures and in sentences.

Source of the claims: seed 001, "Takeaways": continued training of a quantized network is faster
than starting from scratch; and lower widths want higher learning rates.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

from normtweak_core.polynomial.config import Cell, width_name

# Losses closer than this are called equal: over three seeds the ratio of two cells moved by up to
# 2.4 %, that of two nearly equal ones by 0.8 % (docs/log.md).
TIE = 0.03

Verdict = Literal["holds", "holds in part", "does not hold", "not shown", "not asked"]


@dataclass(frozen=True)
class Row:
    """A cell with its test losses."""

    cell: Cell
    before: float  # quantized and not trained
    loss: float


@dataclass(frozen=True)
class Claim:
    """One claim, and what the cells say."""

    claim: str
    verdict: Verdict
    figures: str  # what the verdict rests on
    detail: str


def readings(rows: list[Row]) -> list[Claim]:
    """Return the claims that the cells can speak to."""
    claims = [
        read_starts(rows),
        read_rates(rows, "pretrained"),
        read_rates(rows, "random"),
        read_lora(rows),
    ]
    return [claim for claim in claims if claim.verdict != "not asked"]


def read_starts(rows: list[Row]) -> Claim:
    """Judge "pretrained beats random start", pair by pair of equal width and learning rate."""
    claim = "pretrained beats random start"
    losses = {
        (row.cell.bits, row.cell.lr, row.cell.start): row.loss
        for row in rows
        if row.cell.rank is None
    }
    pairs = {
        (bits, lr): (loss, losses[bits, lr, "random"])
        for (bits, lr, start), loss in losses.items()
        if start == "pretrained" and (bits, lr, "random") in losses
    }
    if not pairs:
        return Claim(claim, "not asked", "", "the grid has no pair of both starts")
    won = {pair for pair, (ours, theirs) in pairs.items() if ours < theirs * (1 - TIE)}
    others = ", ".join(
        f"{width_name(bits)} at {lr:g} ({ours:.4g} against {theirs:.4g})"
        for (bits, lr), (ours, theirs) in pairs.items()
        if (bits, lr) not in won
    )
    ratios = sorted(theirs / ours for ours, theirs in pairs.values())
    detail = f"the random start's loss is {ratios[0]:.2f} to {ratios[-1]:.2f} times as large"
    return Claim(
        claim,
        _share(len(won), len(pairs)),
        f"in {len(won)} of {len(pairs)} pairs of equal width and rate",
        f"{detail}; not so: {others}" if others else detail,
    )


def read_rates(rows: list[Row], start: str) -> Claim:
    """Judge "lower widths want higher learning rates" among the cells of one start.

    It holds where the best rate rises on the way to the lowest width and never falls; rates whose
    losses are equal within `TIE` are both best. Where it neither rises nor falls, nothing is shown.
    """
    claim = f"lower widths want higher learning rates ({start} start)"
    losses: dict[float, dict[float, float]] = {}
    for row in rows:
        if row.cell.start == start and row.cell.rank is None:
            losses.setdefault(row.cell.bits, {})[row.cell.lr] = row.loss
    rates = sorted({lr for found in losses.values() for lr in found})
    if len(losses) < 2 or len(rates) < 2:
        return Claim(claim, "not asked", "", "the grid has too few widths or rates")
    best = {bits: _best(losses[bits]) for bits in sorted(losses, reverse=True)}
    pairs = list(itertools.combinations(best.values(), 2))  # wider, narrower
    rises = any(min(narrow) > max(wide) for wide, narrow in pairs)
    falls = any(max(narrow) < min(wide) for wide, narrow in pairs)
    verdicts: dict[tuple[bool, bool], Verdict] = {
        (True, False): "holds",
        (True, True): "holds in part",
        (False, True): "does not hold",
        (False, False): "not shown",
    }
    gains = (
        f"{width_name(bits)} {losses[bits][rates[0]] / losses[bits][rates[-1]] - 1:+.0%}"
        for bits in best
    )
    return Claim(
        claim,
        verdicts[rises, falls],
        "best rate: " + ", ".join(f"{width_name(bits)} {_rates(best[bits])}" for bits in best),
        f"loss at {rates[0]:g} against that at {rates[-1]:g}: {', '.join(gains)}",
    )


def read_lora(rows: list[Row]) -> Claim:
    """Judge whether a LoRA alone does as well as training all weights from the same start."""
    claim = "a LoRA does as well as training all weights"
    full: dict[float, float] = {}
    for row in rows:
        if row.cell.start == "pretrained" and row.cell.rank is None:
            full[row.cell.bits] = min(row.loss, full.get(row.cell.bits, row.loss))
    pairs = {
        row.cell.bits: (row.loss, full[row.cell.bits])
        for row in rows
        if row.cell.rank is not None and row.cell.bits in full
    }
    if not pairs:
        return Claim(claim, "not asked", "", "there is no LoRA, or nothing to hold it against")
    kept = [bits for bits, (lora, best) in pairs.items() if lora <= best * (1 + TIE)]
    shown = (f"{width_name(bits)} {lora / best - 1:+.0%}" for bits, (lora, best) in pairs.items())
    return Claim(
        claim,
        _share(len(kept), len(pairs)),
        f"at {len(kept)} of {len(pairs)} widths",
        f"its loss against the best of the pretrained cells: {', '.join(shown)}",
    )


def _best(losses: dict[float, float]) -> list[float]:
    least = min(losses.values())
    return [lr for lr, loss in losses.items() if loss <= least * (1 + TIE)]


def _rates(rates: list[float]) -> str:
    return " or ".join(f"{lr:g}" for lr in sorted(rates))


def _share(won: int, asked: int) -> Verdict:
    if won == asked:
        return "holds"
    return "holds in part" if won else "does not hold"
