"""How the windows of an optimizer step are divided; no torch here."""

from normtweak_core.errors import InputError


def require_whole_parts(batch: int, accumulate: int) -> None:
    """Accept a batch of windows that can be computed in parts of one size.

    Raises:
        InputError: The parts do not divide it.
    """
    if batch % accumulate:
        raise InputError(
            "must divide batch",
            key="accumulate",
            found=f"found {accumulate} parts of {batch} windows",
        )
