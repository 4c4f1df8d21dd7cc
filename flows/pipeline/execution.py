"""The stages of a pipeline carried out one after the other, each from the cache or by its body."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prefect.client.schemas.objects import State, StateType
from prefect.utilities.annotations import quote

from normtweak_core.memory import give_back
from tasks.engine.caching import cached_result
from tasks.engine.log_files import working_on
from tasks.engine.stage import Found, Stage, carry_out
from tasks.server.cancelling import raise_if_cancelled

log = logging.getLogger(__name__)

# Takes the work, what was found, of the stage itself as far as it is, and whether its newest part
# was cached.
Told = Callable[[Any, Found, bool], None]


class Execution:
    """Carries out stages, and remembers which were cached and where each is on Prefect's page."""

    def __init__(self, told: Mapping[str, Told] | None = None):
        """Begin with nothing done.

        Args:
            told: What is done after each part of a stage, by the name of the stage.
        """
        self.told = told or {}
        self.cached: dict[str, bool] = {}  # by what people call a part
        self._ends: dict[str, State[Any]] = {}  # of the last part of each stage, without results

    def visit(self, stage: Stage, work: Any, found: dict[str, Any]) -> list[Any]:
        """Return the results of all parts of a stage."""
        parts = list(stage.parts(work))
        asked = parts[:1] if stage.chained else parts
        keys = [stage.key(work, found, part) for part in asked]
        results: list[Any] = []
        with (
            stage.around(work, found, keys) as shared,
            _counted(stage, work) as advance,
        ):
            for place, part in enumerate(parts):
                if stage.chained and results:
                    keys.append(stage.key(work, found, part, results[-1]))
                label = stage.label_of(work, part)
                arguments = stage.arguments(
                    found,
                    key=keys[place],
                    work=work,
                    part=part,
                    label=label,
                    before=list(results),
                    shared=shared,
                )
                with working_on(stage.name, label):
                    results.append(self._part(stage, label, keys[place], arguments, results))
                    advance(place + 1, len(parts))
                    if told := self.told.get(stage.name):
                        so_far = results if stage.has_parts else results[0]
                        told(work, found | {stage.name: so_far}, self.cached[label])
        if not all(self.cached[stage.label_of(work, part)] for part in parts):
            give_back()
        return results

    def _part(self, stage: Stage, label: str, key: str, arguments: Any, before: list[Any]) -> Any:
        raise_if_cancelled(ask=False)
        self.cached[label] = cached_result(key) is not None
        log.info("%s%s", label, ": cached" if self.cached[label] else "")
        state = carry_out.with_options(name=stage.name)(
            key=key,
            label=label,
            body=quote(stage.body),
            arguments=quote(arguments),
            wait_for=self._ends_before(stage, before),
            return_state=True,
        )
        result = state.result()
        self._ends[stage.name] = State(
            type=StateType.COMPLETED, state_details=state.state_details, data=True
        )
        return result

    def _ends_before(self, stage: Stage, before: list[Any]) -> list[State[Any]]:
        """Return the ends of what a part is made from, which the page draws arrows from.

        What is made from nothing but the model waits for the first stage, which looks at that.
        """
        if stage.chained and before:
            return [self._ends[stage.name]]
        needed = [self._ends[name] for name in stage.needs if name in self._ends]
        return needed or list(self._ends.values())[:1]

    def ends(self, stages: Iterable[Stage]) -> list[State[Any]]:
        """Return the ends of the stages that no other is made from, for what waits for all."""
        needed = {name for stage in stages for name in stage.needs}
        needed.update(list(self._ends)[:1])  # see `_ends_before`
        return [end for name, end in self._ends.items() if name not in needed]


@contextlib.contextmanager
def _counted(stage: Stage, work: Any) -> Iterator[Callable[..., None]]:
    """Yield what counts the parts of a stage on the terminal, where it has a unit."""
    if not stage.unit:
        yield lambda *_: None
        return
    name = f"{work.name}{stage.title}"
    with work.progress.on_terminal(name, stage.unit) as advance:
        yield advance
