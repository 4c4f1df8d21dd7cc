"""The stages of a recipe carried out by their bodies, without an engine, and stored by their keys.

What two recipes give the same key is computed once, as with the real cache, so that a value left
out of a key is seen as a result that stays.
"""

from dataclasses import dataclass, field
from typing import Any

from tasks.engine.artifacts import ArtifactRef
from tasks.engine.stage import Stage
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
class Bodies:
    """Visits stages as functions; ends at the first that differs from those that are known."""

    stored: dict[str, Result] = field(default_factory=dict)  # by key; shared among runs
    known: dict[str, dict[str, Any]] | None = None  # effects by name of the part
    effects: dict[str, dict[str, Any]] = field(default_factory=dict)
    told: set[str] = field(default_factory=lambda: TOLD)
    cached: dict[str, bool] = field(default_factory=dict)

    def visit(self, stage: Stage, work: Any, found: dict[str, Any]) -> list[Any]:
        """Return the results of a stage."""
        parts, results = list(stage.parts(work)), []
        keys = [stage.key(work, found, part) for part in (parts[:1] if stage.chained else parts)]
        with stage.around(work, found, keys) as shared:
            for part in parts:
                before = results[-1] if stage.chained and results else None
                key, label = stage.key(work, found, part, before), stage.label_of(work, part)
                if key not in self.stored:
                    self.stored[key] = stage.body(
                        **stage.arguments(
                            found, key=key, work=work, part=part, label=label,
                            before=list(results), shared=shared,
                        )
                    )  # fmt: skip
                results.append(self.stored[key])
                self.cached[label] = False
                self.effects[label] = effect(results[-1], self.told)
                if self.known is not None and self.known.get(label) != self.effects[label]:
                    raise DiffersError(label)
        return results


def first_difference(bodies: Bodies, carry_out: Any) -> str | None:
    """Return the first stage whose result is another one, or that is gone; None: all stay."""
    try:
        carry_out(bodies)
    except DiffersError as difference:
        return str(difference)
    absent = bodies.known.keys() - bodies.effects.keys()
    return min(absent) if absent else None
