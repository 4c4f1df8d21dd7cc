"""What the numbers are said to mean, from made-up numbers."""

from normtweak_core.polynomial.config import Cell
from normtweak_core.polynomial.reading import TIE, Row, read_lora, read_rates, read_starts, readings


def row(bits, start, lr, loss, rank=None) -> Row:
    return Row(Cell(bits=float(bits), start=start, lr=lr, rank=rank), 1.0, loss)


def grid(losses: dict[float, tuple[float, float]], start: str = "pretrained") -> list[Row]:
    """Rows of losses at 1e-3 and 1e-4 by width."""
    return [
        row(bits, start, lr, loss)
        for bits, pair in losses.items()
        for lr, loss in zip((1e-3, 1e-4), pair, strict=True)
    ]


def test_every_pair_won_holds():
    rows = grid({8: (0.1, 0.2), 1: (0.3, 0.4)}) + grid({8: (0.2, 0.3), 1: (0.4, 0.8)}, "random")
    claim = read_starts(rows)
    assert claim.verdict == "holds"
    assert claim.figures == "in 4 of 4 pairs of equal width and rate"
    assert claim.detail == "the random start's loss is 1.33 to 2.00 times as large"


def test_a_pair_lost_or_tied_is_named():
    rows = grid({8: (0.1, 0.2), 1: (0.3, 0.4)}) + grid({8: (0.2, 0.2), 1: (0.2, 0.8)}, "random")
    claim = read_starts(rows)
    assert claim.verdict == "holds in part"
    assert claim.figures.startswith("in 2 of 4 ")
    assert claim.detail.endswith(
        "not so: 8 bits at 0.0001 (0.2 against 0.2), 1 bit at 0.001 (0.3 against 0.2)"
    )


def test_no_pair_won_does_not_hold():
    rows = grid({8: (0.2, 0.2)}) + grid({8: (0.1, 0.2 * (1 + TIE / 2))}, "random")
    assert read_starts(rows).verdict == "does not hold"


def test_a_best_rate_that_rises_holds():
    claim = read_rates(grid({1: (0.3, 0.6), 8: (0.2, 0.1), 2: (0.3, 0.3)}), "pretrained")
    assert claim.verdict == "holds"
    assert claim.figures == "best rate: 8 bits 0.0001, 2 bits 0.0001 or 0.001, 1 bit 0.001"
    assert (
        claim.detail == "loss at 0.0001 against that at 0.001: 8 bits -50%, 2 bits +0%, 1 bit +100%"
    )


def test_a_best_rate_that_falls_does_not_hold():
    assert read_rates(grid({8: (0.1, 0.2), 1: (0.2, 0.1)}), "pretrained").verdict == "does not hold"


def test_a_best_rate_that_rises_and_falls_holds_in_part():
    rows = grid({8: (0.2, 0.1), 2: (0.1, 0.2), 1: (0.2, 0.1)})
    assert read_rates(rows, "pretrained").verdict == "holds in part"


def test_one_best_rate_for_all_shows_nothing():
    assert read_rates(grid({8: (0.1, 0.2), 1: (0.1, 0.2)}), "pretrained").verdict == "not shown"


def test_a_lora_is_held_against_the_best_of_the_trained_weights():
    rows = grid({8: (0.2, 0.1), 1: (0.2, 0.4)})
    rows += [row(8, "pretrained", 0.2, 0.2, rank=4), row(1, "pretrained", 0.2, 0.1, rank=4)]
    claim = read_lora(rows)
    assert claim.verdict == "holds in part"
    assert claim.figures == "at 1 of 2 widths"
    assert claim.detail.endswith("8 bits +100%, 1 bit -50%")
    assert read_rates(rows, "pretrained").verdict == "holds"  # LoRAs do not count there


def test_what_the_grid_cannot_tell_is_left_out():
    assert readings([row(8, "random", 1e-3, 0.1)]) == []
    assert [claim.claim for claim in readings(grid({8: (0.1, 0.2), 1: (0.1, 0.2)}))] == [
        "lower widths want higher learning rates (pretrained start)"
    ]
