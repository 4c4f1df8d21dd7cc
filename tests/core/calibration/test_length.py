import pytest

from normtweak_core.calibration.length import effective_length
from normtweak_core.errors import InputError


@pytest.mark.parametrize(
    ("asked", "context", "length"),
    [(None, 512, 512), (None, 4096, 2048), (None, None, 2048), (64, 512, 64), (512, 512, 512)],
)
def test_the_length_is_what_is_asked_or_the_smaller_of_2048_and_the_context(asked, context, length):
    assert effective_length(asked, context) == length


def test_more_than_the_context_is_refused():
    message = r"at most the model's context of 512 tokens; found 513: lower it, or set null for 512"
    with pytest.raises(InputError, match=message):
        effective_length(513, 512)
