"""How the windows of an optimizer step are divided, among processes and in each; no torch here."""

from normtweak_core.distributed.config import Devices
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


def shared_by(devices: Devices, found: int, batch: int, accumulate: int) -> int:
    """Return how many processes share each batch: equal shares, in equal parts.

    Args:
        devices: What the recipe says.
        found: How many there may be: those of the recipe, or where it says auto, the GPUs.
        batch: Windows of a step.
        accumulate: Parts that each process computes its share in.

    Raises:
        InputError: The recipe asks for a number that does not divide the batch.
    """
    if devices == "auto":
        return max(count for count in range(1, found + 1) if batch % (count * accumulate) == 0)
    if batch % (found * accumulate):
        raise InputError(
            "must divide batch, each share of which is computed in accumulate parts",
            key="devices",
            found=f"found {found} processes of {accumulate} parts for {batch} windows",
            remedy="raise batch, or lower devices or accumulate",
        )
    return found
