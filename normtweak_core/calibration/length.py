"""How long a calibration window is."""

from normtweak_core.errors import InputError

DEFAULT_LENGTH = 2048  # what the norm-tweaking paper calibrates with (arXiv 2309.02784)


def effective_length(config_length: int | None, context: int | None) -> int:
    """Return the tokens per window: as asked, or min(2048, model context) where null.

    Raises:
        InputError: More is asked than the model's context.
    """
    if config_length is None:
        return min(DEFAULT_LENGTH, context or DEFAULT_LENGTH)
    usual = min(DEFAULT_LENGTH, context or DEFAULT_LENGTH)
    require_fit(config_length, context, "calibration.length", f"lower it, or set null for {usual}")
    return config_length


def require_fit(length: int, context: int | None, key: str, remedy: str) -> None:
    """Accept a window that is no longer than what the model was made for.

    Args:
        length: Tokens per window.
        context: The longest one; None: no limit.
        key: The key that holds the length.
        remedy: What to do about a longer one.

    Raises:
        InputError: It is longer.
    """
    if context is not None and length > context:
        raise InputError(
            f"must be at most the model's context of {context} tokens",
            key=key,
            found=f"found {length}",
            remedy=remedy,
        )
