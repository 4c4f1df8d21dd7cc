"""A cached step, declared once beside its body.

    @stage(
        "final tune",
        needs=("calibrate", "float type", "block"),
        reads=lambda work, found, part: {"final_tune": work.recipe.final_tune, ...},
        when=lambda work: work.recipe.final_tune.enabled,
    )
    def final_tune(key, work, calibrate, float_type, block) -> FinalTuneResult: ...

What a run does, what a plan finds finished, what a rebuild repeats and the arrows on Prefect's page
follow from the declarations (`flows.pipeline.declared`). The key of a step holds its name, what it
is made from, what it reads, and its code: its own module with all that this imports of ours.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from prefect import task

from tasks.engine.caching import StageSerializer, stage_key, stage_policy

Found = Mapping[str, Any]  # results by name of the stage; of a stage with parts a list of them
WHOLE: Sequence[Any] = (None,)  # the parts of a stage that has none


def _nothing(work: Any, found: Found, part: Any) -> dict[str, Any]:
    return {}


def _whole(work: Any) -> Sequence[Any]:
    return WHOLE


def _always(work: Any) -> bool:
    return True


@contextlib.contextmanager
def _no_context(work: Any, found: Found, keys: Sequence[str]) -> Iterator[None]:
    yield None


@dataclass(frozen=True)
class Stage:
    """One cached step of a pipeline, and everything that is known of it before it runs."""

    name: str  # in keys of results, in the log; results are found under it
    body: Callable[..., Any]
    kind: str = ""  # starts its keys: stages of one kind that read the same find each other
    title: str = ""  # what a plan calls it, and all stages that it counts together
    needs: tuple[str, ...] = ()  # stages, or inputs of the run, whose results it is made from
    needs_of: Callable[[Any], tuple[str, ...]] | None = None  # of one part, if not all of them
    reads: Callable[[Any, Found, Any], dict[str, Any]] = _nothing  # what else decides its result
    shared: bool = True  # whether what all stages of a job read decides its result
    sources: tuple[str, ...] = ()  # modules it runs which its own does not import
    parts: Callable[[Any], Sequence[Any]] = _whole
    chained: bool = False  # each part is also made from the part before it
    when: Callable[[Any], bool] = _always
    label: Callable[[Any, Any], str] | None = None  # of a part, for people: the name by default
    unit: str = ""  # of the bar on the terminal that counts its parts; none: no bar
    # Entered around all its parts, with their keys; of a chained stage that of the first.
    around: Callable[[Any, Found, Sequence[str]], AbstractContextManager[Any]] = _no_context
    again: Callable[[Any, Found], dict[str, Any]] | None = (
        None  # other inputs, if it must be redone
    )

    def but(self, **changes: Any) -> "Stage":
        """Return the same step declared otherwise in some respects."""
        return dataclasses.replace(self, **changes)

    @property
    def heading(self) -> str:
        """What a plan calls it."""
        return self.title or self.name

    @property
    def has_parts(self) -> bool:
        """Whether it is a list of results."""
        return self.parts is not _whole

    def label_of(self, work: Any, part: Any) -> str:
        """Return what people call a part of it."""
        return self.name if self.label is None else self.label(work, part)

    def key(self, work: Any, found: Found, part: Any, before: Any = None) -> str:
        """Return the key of a part.

        Args:
            work: Recipe, model and machine.
            found: The results of what it needs.
            part: Which part; None: of a stage without parts.
            before: The result of the part before it, if it is chained.
        """
        needs = self.needs if self.needs_of is None else self.needs_of(part)
        parents = {name: identity(found[name]) for name in needs if name in found}
        if self.shared:
            work.modules.update(self.modules)
        if before is not None:
            parents["before"] = identity(before)
        return stage_key(
            self.kind or self.name.replace(" ", "-"),
            parents=parents,
            inputs=self.reads(work, found, part),
            shared=work.shared if self.shared else {},
            sources=self.modules,
            device=work.device,
            threads=work.threads,
        )

    @property
    def modules(self) -> tuple[str, ...]:
        """Where its code begins."""
        return (self.body.__module__, *self.sources)

    def arguments(self, found: Found, **others: Any) -> dict[str, Any]:
        """Return what the body asks for, by the names of its parameters."""
        needed = {name.replace(" ", "_"): found.get(name) for name in self.needs}
        given = needed | others | {"found": found}
        return {name: given[name] for name in inspect.signature(self.body).parameters}


def identity(result: Any) -> Any:
    """Return what a result is to the key of what is made from it: hashes, no paths or times."""
    return [one.identity for one in result] if isinstance(result, list) else result.identity


def stage(name: str, **declared: Any) -> Callable[[Callable[..., Any]], Stage]:
    """Return a decorator that makes a stage of its body.

    The body is called with keywords, by the names of its parameters: ``key``, ``work``, ``part``
    and ``label``; ``before``, the results of the parts before it; ``shared``, what ``around``
    yields; ``found``, all results so far; and those of what it needs, with underscores for spaces.
    """
    return lambda body: Stage(name, body, **declared)


# One task for all stages, under the name of each. Arguments are quoted by the caller, so that
# Prefect does not walk through models in memory.
@task(
    task_run_name="{label}",
    cache_policy=stage_policy(),
    persist_result=True,
    result_serializer=StageSerializer(),
)
def carry_out(key: str, label: str, body: Any, arguments: Any) -> Any:
    """Return the result of a part, from the cache or from its body."""
    return body(**arguments)
