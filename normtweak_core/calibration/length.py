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
    if context is not None and config_length > context:
        raise InputError(
            f"must be at most the model's context of {context} tokens",
            key="calibration.length",
            found=f"found {config_length}",
            remedy=f"lower it, or set null for {min(DEFAULT_LENGTH, context)}",
        )
    return config_length
