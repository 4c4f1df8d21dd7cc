"""The stages of a recipe carried out by their bodies, without an engine, and stored by their keys.

The wiring is that of the flows. What two recipes give the same key is computed once, as with the
real cache, so that a value left out of a key is seen as a result that stays.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any

from flows.pipeline.run import Run, Stages
from tasks.engine.artifacts import ArtifactRef
from tasks.engine.progress import Progress
from tasks.results import Result

# Fields that repeat what the recipe says, or tell of it: no result by themselves.
TOLD = {"report", "table", "quality", "manifest", "folder", "seconds", "until", "state_sha256"}


class DiffersError(Exception):
    """A stage has another result than in the run that it is compared with."""


def effect(result: Result, told: set[str]) -> dict[str, Any]:
    """Return what a stage has made: hashes of files, and numbers, but for the fields told."""
    values = {name: getattr(result, name) for name in type(result).model_fields}
    return {
        name: value.sha256 if isinstance(value, ArtifactRef) else value
        for name, value in values.items()
        if name not in told
    }


@dataclass
class StageBodies(Stages):
    """Stages that are functions; they end at the first that differs from those that are known."""

    stored: dict[str, Result] = field(default_factory=dict)  # by key; shared among runs
    known: dict[str, dict[str, Any]] | None = None  # effects by name of the stage
    effects: dict[str, dict[str, Any]] = field(default_factory=dict)
    told: set[str] = field(default_factory=lambda: TOLD)
    progress: Progress = field(default_factory=lambda: Progress(terminal=False))

    def stage(self, name: str, key: str, task: Any, **arguments: Any) -> Any:
        if key not in self.stored:
            self.stored[key] = task.fn(key=key, **arguments)
        result = self.stored[key]
        self.cached[name] = False
        self.effects[name] = effect(result, self.told)
        if self.known is not None and self.known.get(name) != self.effects[name]:
            raise DiffersError(name)
        return result


@dataclass
class Bodies(StageBodies, Run):
    """A run whose stages are functions."""


def first_difference(run: Bodies, carry_out: Any) -> str | None:
    """Return the first stage whose result is another one, or that is gone; None: all stay."""
    try:
        carry_out(run)
    except DiffersError as difference:
        return str(difference)
    absent = run.known.keys() - run.effects.keys()
    return min(absent) if absent else None


@contextlib.contextmanager
def nothing_shown(*_: Any):
    """Stands for the pages that are not there without an engine."""
    yield lambda *_: None
