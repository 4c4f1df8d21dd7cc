"""How far a stage is: a bar with time left on a terminal, plain lines elsewhere, a bar on the page.

The page is that of the flow run, where there is one.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from normtweak_core.lazy import lazy
from tasks.engine.live_page import show_bar

log = logging.getLogger(__name__)
rich_console = lazy("rich.console")
rich_progress = lazy("rich.progress")


class Advance(Protocol):
    """Takes how many units of how many are done, and what else is worth showing."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show it."""


SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Shows stages one after the other; quiet where nothing should be shown."""

    def __init__(self, terminal: bool | None = None):
        """Draw bars if ``terminal``; default: if standard error is one."""
        self.terminal = sys.stderr.isatty() if terminal is None else terminal

    @contextlib.contextmanager
    def stage(
        self, name: str, unit: str, page: str | None = None, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Advance]:
        """Yield a callback that is told how many of how many units are done.

        Args:
            name: Of the stage.
            unit: What is counted.
            page: Bar on the page of the run, where it is not of this stage alone.
            part: Which part of that bar, of how many, the stage is.
        """
        text = name

        def move(share: float) -> None:
            show_bar(page or name, part[0] + share, part[1], text)

        with self.on_terminal(name, unit) as here:

            def advance(done: int, total: int, note: str = "") -> None:
                nonlocal text
                here(done, total, note)
                text = f"{name}: {done}/{total} {unit}" + (f", {note}" if note else "")
                move(done / total if total else 0.0)

            move(0.0)
            yield advance
            move(1.0)  # not every stage counts to its end

    def on_terminal(self, name: str, unit: str) -> contextlib.AbstractContextManager[Advance]:
        """Return the same without a bar on the page, for what may all be cached."""
        if self.terminal:
            return self._bar(name, unit)
        return contextlib.nullcontext(_Lines(name, unit))

    @contextlib.contextmanager
    def _bar(self, name: str, unit: str) -> Iterator[Advance]:
        class Speed(rich_progress.ProgressColumn):
            def render(self, task) -> str:
                shown = unit == "tokens" and task.speed  # unknown at first
                return f"{task.speed:,.0f}/s" if shown else ""

        columns = (
            rich_progress.TextColumn("{task.description:<24}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn(unit),
            Speed(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TimeRemainingColumn(compact=True),
            rich_progress.TextColumn("{task.fields[note]}"),
        )
        with rich_progress.Progress(
            *columns, console=rich_console.Console(stderr=True), transient=False
        ) as bars:
            bar = bars.add_task(name, total=None, note="")

            def advance(done: int, total: int, note: str = "") -> None:
                bars.update(bar, completed=done, total=total, note=note)

            yield advance


class _Lines:
    """Writes a line at the end of a stage, and now and then before it."""

    def __init__(self, name: str, unit: str):
        self.name, self.unit = name, unit
        self.began = self.last = time.monotonic()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if done < total and now - self.last < SECONDS_BETWEEN_LINES:
            return
        self.last = now
        rate = done / max(now - self.began, 1e-9)
        left = "" if done >= total else f", {(total - done) / rate:.0f} s left"
        shown = f", {note}" if note else ""
        log.info(
            "%s: %s/%s %s, %.3g per second%s%s",
            self.name,
            done,
            total,
            self.unit,
            rate,
            left,
            shown,
        )


def readable_bytes(count: float) -> str:
    """Return a size such as ``3.2 GB``, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def readable_seconds(seconds: float) -> str:
    """Return a duration such as ``3 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
