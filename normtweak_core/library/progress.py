"""Progress of a call: a bar in notebooks and terminals, or a function of the caller's."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tqdm.auto import tqdm

from normtweak_core.errors import InputError
from normtweak_core.paths import shown

Progress = Callable[[str, float, int], None]  # what is done, how much of it, of how much
UNITS = {"calibration": "tokens", "final tune": "steps", "export": "tensors"}
UNITS |= dict.fromkeys(("trial", "sensitivity", "blocks"), "blocks")


@contextlib.contextmanager
def progress_of(asked: Any) -> Iterator[Progress]:
    """Give the function that is told how far a call is.

    Args:
        asked: True: one bar after another, of tqdm; False: nothing is shown; or the function.

    Raises:
        InputError: It is none of them.
    """
    if callable(asked):
        yield asked
    elif asked is True:
        bars = _Bars()
        try:
            yield bars
        finally:
            bars.close()
    elif asked is False:
        yield lambda what, done, total: None
    else:
        raise InputError(
            "must be True, False or a function of what is done, how much, and of how much",
            key="progress",
            found=f"found {shown(asked)}",
        )


class _Bars:
    """A bar for what is done now; the one before stays, full."""

    def __init__(self):
        self._what, self._bar = "", None
        self._bar: Any

    def __call__(self, what: str, done: int | float, total: int) -> None:
        if what != self._what:
            self.close()
            self._what, self._bar = what, tqdm(total=total, desc=what, unit=UNITS.get(what, ""))
        self._bar.n = done
        self._bar.update(0)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
