"""The stage that writes down what a reference model was trained on, less what is held out."""

import json
import platform

from prefect import task

from tasks.engine.artifacts import ArtifactRef, Result, publish
from tasks.models.job import STAGE, Job

SOURCES = [__name__, "normtweak_core.reference.corpus"]


class TrainingText(Result, frozen=True):
    """A text file, one document a line."""

    text: ArtifactRef


def training_text_key(job: Job) -> str:
    """Return the key of the text: it comes with Python, so that it is that of its version."""
    inputs = {"python": platform.python_version()}
    return job.key("training-text", parents=[], inputs=inputs, sources=SOURCES)


@task(task_run_name="training-text", **STAGE)
def training_text_stage(key: str) -> TrainingText:
    """Return the documents that both reference models were trained on."""
    from normtweak_core.reference.corpus import documents

    lines = [json.dumps({"text": one.text}) + "\n" for one in documents() if not one.held_out]
    return TrainingText(
        text=publish(
            "text", key, lambda path: path.write_text("".join(lines), encoding="utf-8"), "jsonl"
        )
    )
