"""Where `normtweak` begins. Ctrl-C while our own modules are imported ends in a sentence as well.

What Python itself does before, some hundredths of a second, is out of reach.
"""

import os
import signal
from types import FrameType

__all__ = ["main"]


def _end(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has begun, and what an import makes of exceptions is its own affair."""
    os.write(2, b"normtweak: interrupted before it began.\n")
    os._exit(128 + number)


if heard := signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)

from flows import cli  # noqa: E402
from tasks.server.ending import process_is_a_command  # noqa: E402

if heard:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code, as `flows.cli.main` does."""
    process_is_a_command()
    return cli.main(arguments)
