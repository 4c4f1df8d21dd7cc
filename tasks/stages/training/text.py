"""The stage that writes down what a reference model was trained on, less what is held out."""

import json
import platform
from pathlib import Path

from normtweak_core.reference.corpus import documents
from tasks.engine.artifacts import ArtifactRef, Result, publish
from tasks.engine.stage import stage


class TrainingText(Result, frozen=True):
    """A text file, one document a line."""

    text: ArtifactRef


# It comes with Python, so that it is that of its version.
@stage("training text", reads=lambda work, found, part: {"python": platform.python_version()})
def training_text(key: str) -> TrainingText:
    """Return the documents that both reference models were trained on."""
    lines = [json.dumps({"text": one.text}) + "\n" for one in documents() if not one.held_out]

    def write(path: Path) -> None:
        path.write_text("".join(lines), encoding="utf-8")

    return TrainingText(text=publish("text", key, write, "jsonl"))
