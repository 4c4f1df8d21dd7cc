"""How many processes share a batch: what is asked for, or as many as divide it."""

import pytest

from normtweak_core.errors import InputError
from normtweak_core.training.batches import shared_by


@pytest.mark.parametrize(
    ("found", "batch", "accumulate", "shared"),
    [(1, 8, 1, 1), (8, 8, 1, 8), (8, 8, 2, 4), (8, 6, 1, 6), (3, 8, 1, 2), (4, 7, 7, 1)],
)
def test_auto_takes_as_many_as_divide_the_batch(found, batch, accumulate, shared):
    assert shared_by("auto", found, batch, accumulate) == shared


def test_a_number_is_taken_or_refused():
    assert shared_by(4, 4, 8, 2) == 4
    with pytest.raises(InputError) as refused:
        shared_by(3, 3, 8, 1)
    assert refused.value.sentence == (
        "devices must divide batch, each share of which is computed in accumulate parts; found 3 "
        "processes of 1 parts for 8 windows: raise batch, or lower devices or accumulate."
    )
    with pytest.raises(InputError, match="found 4 processes of 4 parts for 8 windows"):
        shared_by(4, 4, 8, 4)
