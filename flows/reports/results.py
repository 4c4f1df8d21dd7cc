"""What a run has found, as its reports take it, and its files: a table, and the whole as JSON."""

import hashlib
import importlib.metadata
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normtweak_core.evaluate.task_scores import TaskScores
from tasks.engine.artifacts import write_atomically
from tasks.models.measured_on import ENGINE
from tasks.registry.window_losses import FACTS, MEASURED, WINDOWS, WindowLosses
from tasks.tables.evaluation import EVALUATION, evaluation_frame

TABLE = "evaluation.parquet"
LIBRARIES = ("torch", "transformers", ENGINE)


@dataclass(frozen=True)
class Measured:
    """The evaluation of one model: numbers, and how each was come by."""

    metrics: dict[str, float]  # flat names
    window_nll: list[float]  # of the model itself, nats per token
    tokens_sha256: str
    scores: dict[str, TaskScores] = field(default_factory=dict)  # of the model itself, by task
    inputs: dict[str, Any] = field(default_factory=dict)  # texts and items, by content
    window_kl: list[float] = field(default_factory=list)  # from the model beside it, if any
    samples: list[dict[str, str]] = field(default_factory=list)  # what both write: see `Sample`

    @property
    def measured_on(self) -> str:
        """One hash of tokens and items: equal where the numbers of two models can be compared."""
        text = json.dumps([self.inputs, self.tokens_sha256], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """Return what was measured on and with, as plain data."""
        return {
            "inputs": self.inputs,
            "windows": len(self.window_nll),
            "tasks": {
                task: {"version": one.version, "items": one.num_items}
                for task, one in self.scores.items()
            },
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        }


def write_evaluation(
    folder: Path, measured: Measured, seed: int, name: str, against: str | None
) -> list[Path]:
    """Write the table and the facts of an evaluation, and return the files.

    Args:
        folder: Where to write.
        measured: The evaluation.
        seed: Of the run.
        name: Of the model.
        against: What it is measured beside; None: nothing.

    Raises:
        TableError: A value is not a number.
    """
    tasks = {task: (one.version, one.num_items) for task, one in measured.scores.items()}
    settings = measured.settings() | {"seed": seed}
    frame = evaluation_frame(
        measured.metrics, len(measured.window_nll), tasks, seed, settings["versions"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    EVALUATION.write(folder / TABLE, frame)
    facts = {
        "model": name,
        "against": against,
        MEASURED: measured.measured_on,
        "settings": settings,
        "metrics": dict(sorted(measured.metrics.items())),
        WINDOWS: WindowLosses(measured.window_nll, measured.window_kl).as_json(),
        "items": {task: one.values for task, one in measured.scores.items()},
    }
    write_atomically(folder / FACTS, (json.dumps(facts, indent=1) + "\n").encode())
    return [folder / TABLE, folder / FACTS]
