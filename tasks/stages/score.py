"""The evaluation stages on named tasks: one model on the items of one task."""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task

from normtweak_core.calibration.hub_data import hub_data_revision
from normtweak_core.evaluate.config import EvaluationConfig
from normtweak_core.evaluate.tasks import TASKS, items_sha256
from normtweak_core.paths import given_path
from tasks.engine import events
from tasks.engine.artifacts import publish_json
from tasks.engine.progress import Progress
from tasks.models.job import STAGE
from tasks.models.subjects import Subject
from tasks.results import TaskEvaluation

SOURCES = [__name__, "normtweak_core.evaluate.harness", "normtweak_core.model.tokenizer"]
ENGINE = "lm_eval"


@dataclass(frozen=True)
class Items:
    """The items of one task: files, or a commit of the hub's data set."""

    task: str
    data: Path | None  # folder with a folder for each task
    content: str  # hash of the files, or the commit
    max_items: int | None

    def inputs(self) -> dict[str, Any]:
        """Return what is read, as values of a key."""
        return {
            "task": self.task,
            "items": self.content,
            "local": self.data is not None,
            "max_items": self.max_items,
            ENGINE: importlib.metadata.version(ENGINE),
        }


def items_of(config: EvaluationConfig) -> list[Items]:
    """Return the items of a recipe's tasks.

    Raises:
        InputError: A file is missing, or no commit is known of a data set of the hub.
    """
    data = None if config.data is None else given_path(config.data, "evaluation.data")
    found = []
    for task_name in config.tasks:
        if data is None:
            content = hub_data_revision(TASKS[task_name].hub, f"the data set of {task_name}")
        else:
            content = items_sha256(data, task_name)
        found.append(Items(task_name, data, content, config.max_items))
    return found


def task_key(subject: Subject, items: Items) -> str:
    """Return the key of a model's answers to a task."""
    return subject.key("evaluate-task", items.inputs(), SOURCES)


@task(task_run_name="{label}", **STAGE)
def evaluate_task_stage(
    key: str, label: str, items: Any, subject: Any, progress: Any
) -> TaskEvaluation:
    """Return how a model answers each item of a task.

    Raises:
        InputError: A line is not an item of the task, or the data set cannot be read.
        NonFiniteError: An answer has a likelihood of NaN.
    """
    from normtweak_core.evaluate.harness import score_task
    from normtweak_core.evaluate.tasks import read_items

    events.record(label, part="begin")
    bar: Progress = progress
    rows = None if items.data is None else read_items(items.data, items.task)
    revision = None if items.data is not None else items.content
    with bar.stage(label, "answers") as advance:
        scores = score_task(
            subject.model,
            subject.tokenizer,
            items.task,
            rows,
            items.max_items,
            advance,
            revision=revision,
        )
    return TaskEvaluation(
        task=items.task,
        scores=publish_json("evaluation", key, scores.model_dump(mode="json")),
    )
