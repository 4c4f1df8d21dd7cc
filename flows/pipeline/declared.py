"""A pipeline is a list of declared stages; what runs, plans and rebuilds do follows from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tasks.engine.caching import cached_result
from tasks.engine.stage import Stage

# Takes a stage, the work and what was found so far; returns the results of its parts in order, None
# for what is not there.
Visit = Callable[[Stage, Any, dict[str, Any]], list[Any]]


@dataclass(frozen=True)
class Finished:
    """Whether a stage, or how many of its parts, would be found finished."""

    name: str
    cached: int
    parts: int = 1

    def __str__(self) -> str:
        """Return a line of a plan."""
        if self.parts == 1:
            return f"{self.name}: {'cached' if self.cached else 'will run'}"
        return f"{self.name}: {self.cached} of {self.parts} cached"


@dataclass(frozen=True)
class Pipeline:
    """Stages in order; each comes behind those that it needs."""

    name: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        """Refuse two stages of one name, and one that comes before what it needs.

        Raises:
            ValueError: There is one.
        """
        names = [one.name for one in self.stages]
        for place, one in enumerate(self.stages):
            if one.name in names[:place]:
                raise ValueError(f"{self.name} must have each stage once; found {one.name} twice")
            if late := set(one.needs) & set(names[place:]):
                raise ValueError(f"{one.name} must come behind {', '.join(late)} in {self.name}")

    def upto(self, *names: str) -> "Pipeline":
        """Return the stages of some names, and all that they are made from."""
        wanted = set(names)
        for one in reversed(self.stages):
            if one.name in wanted:
                wanted |= set(one.needs)
        return Pipeline(self.name, tuple(one for one in self.stages if one.name in wanted))

    def active(self, work: Any) -> list[Stage]:
        """Return the stages that a recipe has switched on."""
        return [one for one in self.stages if one.when(work)]

    def walk(self, work: Any, visit: Visit, inputs: dict[str, Any] | None = None) -> dict[str, Any]:
        """Visit the stages in order, and return their results by name; with parts, a list.

        A stage whose result asks for others in place of what it was made from is visited again,
        with all that is made from them.

        Args:
            work: Recipe, model and machine.
            visit: Carries a stage out, or only looks.
            inputs: What is there before the first stage; a stage whose result it holds is left out.
        """
        found = dict(inputs or {})
        stages = [one for one in self.active(work) if one.name not in found]
        place = 0
        while place < len(stages):
            one = stages[place]
            place += 1
            if any(self._is_missing(name, work, found) for name in one.needs):
                continue
            results = visit(one, work, found)
            if None in results or len(results) < len(one.parts(work)):
                continue
            found[one.name] = results if one.has_parts else results[0]
            if one.again and (others := one.again(work, found)):
                found |= others
                redone = _made_from(others.keys(), stages)
                place = min(stages.index(stage) for stage in redone)
                for stage in redone:
                    found.pop(stage.name, None)
        return found

    def finished(self, work: Any, inputs: dict[str, Any] | None = None) -> list[Finished]:
        """Return what of it would be found finished; what depends on the rest will run.

        Changes nothing.
        """
        there: dict[str, int] = {}

        def look(one: Stage, work: Any, found: dict[str, Any]) -> list[Any]:
            results: list[Any] = []
            for part in one.parts(work):
                before = results[-1] if one.chained and results else None
                results.append(cached_result(one.key(work, found, part, before)))
                if one.chained and results[-1] is None:
                    break
            there[one.name] = sum(result is not None for result in results)
            return results

        self.walk(work, look, inputs)
        counts: dict[str, Finished] = {}
        for one in self.active(work):
            # Stages of one heading are counted together, where the last of them is.
            before = counts.pop(one.heading, Finished(one.heading, 0, 0))
            counts[one.heading] = Finished(
                one.heading,
                before.cached + there.get(one.name, 0),
                before.parts + len(one.parts(work)),
            )
        return list(counts.values())

    def _is_missing(self, name: str, work: Any, found: dict[str, Any]) -> bool:
        """Tell whether a result is not there that a stage needs; what is switched off is not."""
        switched_off = any(one.name == name and not one.when(work) for one in self.stages)
        return name not in found and not switched_off


def _made_from(names: Any, stages: list[Stage]) -> list[Stage]:
    """Return the stages that are made from some results, directly or through others."""
    changed = set(names)
    found = []
    for one in stages:
        if changed & set(one.needs):
            changed.add(one.name)
            found.append(one)
    return found
