"""What models are measured on: the windows of a text, and the items of named tasks."""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normtweak_core.calibration.hub_data import hub_data_revision
from normtweak_core.evaluate.config import EvaluationConfig, PerplexityConfig
from normtweak_core.evaluate.tasks import TASKS, items_sha256
from normtweak_core.evaluate.text import text_path, window_length
from normtweak_core.lazy import lazy
from normtweak_core.model.source import ModelFolder
from normtweak_core.paths import given_path
from tasks.engine.artifacts import file_sha256
from tasks.models.subjects import Subject

texts = lazy("normtweak_core.calibration.text")

ENGINE = "lm_eval"


@dataclass(frozen=True)
class Text:
    """The windows of a text to measure on."""

    path: Path
    length: int  # tokens per window
    max_tokens: int | None  # stop after so many; None: all

    def inputs(self) -> dict[str, Any]:
        """Return what is read, as values of a key."""
        return {
            "text": file_sha256(self.path),
            "length": self.length,
            "max_tokens": self.max_tokens,
        }

    def windows(self, subject: Subject) -> Any:
        """Return the windows as a model's tokenizer cuts them.

        Raises:
            InputError: The text is empty, malformed or shorter than one window.
        """
        documents = texts.read_documents(self.path)
        windows = texts.cut_windows(documents, subject.tokenizer, self.length)
        most = None if self.max_tokens is None else max(1, self.max_tokens // self.length)
        return windows[:most]


def text_of(
    config: PerplexityConfig, source: ModelFolder, calibration_length: int, context: int | None
) -> Text:
    """Return the text of a recipe.

    Args:
        config: What to measure on.
        source: The float model.
        calibration_length: Tokens per window where no other length is asked for.
        context: The longest window the model was made for; None: no limit.

    Raises:
        InputError: The text does not exist, none is given and the model ships none, or a window is
            longer than the model's context.
    """
    length = window_length(config, calibration_length, context)
    return Text(text_path(config, source), length, config.max_tokens)


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
