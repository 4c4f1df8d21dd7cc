"""The evaluation stage on named tasks: one model on the items of each task."""

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from normtweak_core.evaluate.tasks import read_items
from normtweak_core.lazy import lazy
from tasks.engine import events
from tasks.engine.artifacts import publish_json
from tasks.engine.stage import Stage
from tasks.models.measured_on import Items
from tasks.models.subjects import Subject
from tasks.results import TaskEvaluation
from tasks.stages.evaluate import Model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

harness = lazy("normtweak_core.evaluate.harness")


def scores(name: str, model: Model, **declared: Any) -> Stage:
    """Return the stage that scores a model on the items of the recipe's tasks, a part a task."""

    def body(key: str, work: Any, part: Items, label: str, shared: "_Opened") -> TaskEvaluation:
        return _score(key, work, part, label, shared)

    return Stage(
        f"{name} tasks",
        body,
        kind="evaluate-task",
        title="evaluate",
        parts=lambda work: work.items,
        reads=lambda work, found, items: items.inputs() | {"models": [model(work, found).identity]},
        around=lambda work, found, keys: contextlib.nullcontext(_Opened(model(work, found))),
        shared=False,
        **({"label": lambda work, items: f"{name}: {items.task}"} | declared),
    )


@dataclass(frozen=True)
class _Opened:
    """A model in memory from the first missing answer to the last task; no other is beside it."""

    subject: Subject

    @functools.cached_property
    def model(self) -> "PreTrainedModel":
        return self.subject.whole()


def _score(key: str, work: Any, items: Items, label: str, opened: _Opened) -> TaskEvaluation:
    """Return how a model answers each item of a task.

    Raises:
        InputError: A line is not an item of the task, or the data set cannot be read.
        NonFiniteError: An answer has a likelihood of NaN.
    """
    events.record(label, part="begin")
    rows = None if items.data is None else read_items(items.data, items.task)
    revision = None if items.data is not None else items.content
    with work.progress.stage(label, "answers") as advance:
        found = harness.score_task(
            opened.model,
            opened.subject.tokenizer,
            items.task,
            rows,
            items.max_items,
            advance,
            revision=revision,
        )
    return TaskEvaluation(
        task=items.task,
        scores=publish_json("evaluation", key, found.model_dump(mode="json")),
    )
