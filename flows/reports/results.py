"""What a run has found, as its reports take it."""

import hashlib
import importlib.metadata
import json
from dataclasses import dataclass, field
from typing import Any

from normtweak_core.evaluate.task_scores import TaskScores
from tasks.stages.score import ENGINE

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
