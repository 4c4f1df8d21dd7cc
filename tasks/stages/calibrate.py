"""The calibration stage: build the set, judge it, write it with its table."""

import time
from pathlib import Path
from typing import Any

from normtweak_core.lazy import lazy
from tasks.engine import events
from tasks.engine.artifacts import publish, publish_json
from tasks.engine.environment import state_root
from tasks.engine.stage import Found, stage
from tasks.models.given_data import (
    calibration_length,
    content_of,
    hub_revision,
    images_content_of,
)
from tasks.models.subjects import float_subject
from tasks.models.work import Work
from tasks.results import CalibrationResult

first_token = lazy("normtweak_core.calibration.first_token")
quality = lazy("normtweak_core.calibration.quality")
sets = lazy("normtweak_core.calibration.sets")
storage = lazy("normtweak_core.calibration.storage")
streaming = lazy("normtweak_core.model.streaming")
table = lazy("tasks.tables.calibration")
tokenizers = lazy("normtweak_core.model.tokenizer")


def _reads(work: Work, found: Found, part: None) -> dict[str, Any]:
    config, job = work.data, work.job
    return {
        "calibration": config.model_dump(exclude={"path", "images"}),
        "text": content_of(job, config),
        # The same bytes are other documents in another kind of file.
        "kind": Path(config.path).suffix.lower() if config.path is not None else None,
        "length": calibration_length(job, config),
        "seed": job.seed,
        **({"images": content} if (content := images_content_of(config)) else {}),
        "model": job.fingerprint.sha256,
        "tokenizer": job.tokenizer_sha256,
        # Says which tokens end a document that the model writes.
        "generation": job.generation_sha256 if config.source == "generated" else None,
    }


@stage("calibrate", kind="calibrate", reads=_reads)
def calibrate(key: str, work: Work) -> CalibrationResult:
    """Return the calibration set of a recipe, with a table and a quality report.

    Raises:
        InputError: The text is missing, too short or degenerate.
    """
    events.record("calibrate", part="build")
    began = time.monotonic()
    job, config = work.job, work.data
    tokenizer = tokenizers.load_tokenizer(job.folder)
    # Only writing takes the whole model.
    subject = float_subject(job)
    model = subject.whole() if config.source == "generated" else subject.streamed()
    is_streamed = isinstance(model, streaming.StreamedModel)
    with work.progress.stage("calibration", "tokens") as advance:
        windows = sets.build_calibration_set(
            config,
            tokenizer,
            model.model if is_streamed else model,
            calibration_length(job, config),
            job.seed,
            advance,
            hub_revision(job, config),
            job.folder,
        )
    report, nll = quality.judged(windows, tokenizer, model)
    frame = table.calibration_frame(windows, tokenizer, nll.tolist())
    size = first_token.vocabulary_size(tokenizer)

    def write_windows(path: Path) -> None:
        storage.save_calibration_set(path, windows)

    def write_table(path: Path) -> None:
        table.calibration_table(size).write(path, frame)

    return CalibrationResult(
        windows=publish("calibration", key, write_windows, "safetensors"),
        table=publish("calibration", key, write_table, "parquet"),
        quality=publish_json("calibration", key, report.model_dump(mode="json", exclude_none=True)),
        vocab_size=size,
        verdict=report.verdict,
        reasons=report.reasons,
        seconds=time.monotonic() - began,
    )


# The same step where the set is trained on.
data = calibrate.but(name="data")


def data_windows(made: CalibrationResult) -> Any:
    """Return the token ids of a calibration set, windows x length."""
    return _stored(made).input_ids


def data_with_images(made: CalibrationResult) -> Any:
    """Return what a model reads of a calibration set: the ids, with the images that are in them."""
    return _stored(made).windows


def _stored(made: CalibrationResult) -> Any:
    return storage.load_calibration_set(state_root() / made.windows.path)
