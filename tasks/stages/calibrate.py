"""The calibration stage: build the set, judge it, write it with its table."""

import hashlib
import time
from pathlib import Path
from typing import Any

from prefect import task

from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.calibration.hub_data import local_data
from normtweak_core.errors import InputError
from normtweak_core.model.source import model_context
from tasks.engine import events
from tasks.engine.artifacts import file_sha256, publish, publish_json
from tasks.engine.progress import Progress
from tasks.models.job import STAGE, Job, torch_dtype
from tasks.results import CalibrationResult

SOURCES = [
    __name__,
    "normtweak_core.calibration.likelihood",
    "normtweak_core.calibration.quality",
    "normtweak_core.calibration.sets",
    "normtweak_core.calibration.storage",
    "normtweak_core.model.loading",
    "normtweak_core.model.tokenizer",
]


def calibration_length(job: Job, config: CalibrationConfig) -> int:
    """Return the tokens per window.

    Raises:
        InputError: More is asked than the model's context holds.
    """
    from normtweak_core.calibration.length import effective_length

    return effective_length(config.length, model_context(job.folder))


def calibration_key(job: Job, config: CalibrationConfig) -> str:
    """Return the key of the calibration stage.

    Raises:
        InputError: The text file does not exist, or no commit is known of a hub data set.
    """
    inputs = {
        "calibration": config.model_dump(exclude={"path"}),
        "text": _content_of(job, config),
        # The same bytes are other documents in another kind of file.
        "kind": Path(config.path).suffix.lower() if config.path is not None else None,
        "length": calibration_length(job, config),
        "seed": job.seed,
        "model": job.fingerprint.sha256,
        "tokenizer": job.tokenizer_sha256,
        # Says which tokens end a document that the model writes.
        "generation": job.generation_sha256 if config.source == "generated" else None,
    }
    return job.key("calibrate", parents=[], inputs=inputs, sources=SOURCES)


def data_identity(job: Job, config: CalibrationConfig) -> str:
    """Return what is read of the user's data: a SHA-256, or name@commit of a hub data set.

    Of a folder it is the SHA-256 of the hashes of its files. Empty where nothing is read, since
    the text is written by the model, or drawn.

    Raises:
        InputError: As `calibration_key`.
    """
    content = _content_of(job, config)
    if content is None or config.path is None:
        return ""
    is_folder = (path := local_data(config.path)) is not None and path.is_dir()
    return hashlib.sha256(content.encode()).hexdigest() if is_folder else content


def _content_of(job: Job, config: CalibrationConfig) -> str | None:
    """Hash of the text or data set read; of a hub data set its name and commit."""
    if config.path is None:
        return None
    path = local_data(config.path)
    if path is None:
        if config.source == "text":
            raise InputError(
                "must be a text file",
                key="calibration.path",
                found=f"{config.path} does not exist",
            )
        return f"{config.path}@{job.data_revision(config.path)}"
    if path.is_file():
        return file_sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return ",".join(f"{file.relative_to(path)}={file_sha256(file)}" for file in files)


def _revision(job: Job, config: CalibrationConfig) -> str | None:
    """Commit to read of a hub data set; None for every other source."""
    if config.source != "dataset" or local_data(config.path) is not None:
        return None
    return job.data_revision(config.path)


@task(task_run_name="calibrate", **STAGE)
def calibrate(key: str, config: CalibrationConfig, job: Any, progress: Any) -> CalibrationResult:
    """Return the calibration set of a recipe, with a table and a quality report.

    Raises:
        InputError: The text is missing, too short or degenerate.
    """
    from normtweak_core.calibration.first_token import vocabulary_size
    from normtweak_core.calibration.quality import judged
    from normtweak_core.calibration.sets import build_calibration_set
    from normtweak_core.calibration.storage import save_calibration_set
    from normtweak_core.model.loading import load_causal_lm
    from normtweak_core.model.tokenizer import load_tokenizer
    from tasks.tables.calibration import calibration_frame, calibration_table

    events.record("calibrate", part="build")
    began = time.monotonic()
    bar: Progress = progress
    length = calibration_length(job, config)
    tokenizer = load_tokenizer(job.folder)
    model = load_causal_lm(job.folder, torch_dtype(job.model.dtype), job.device)
    with bar.stage("calibration", "tokens") as advance:
        windows = build_calibration_set(
            config, tokenizer, model, length, job.seed, advance, _revision(job, config)
        )
    quality, nll = judged(windows, tokenizer, model)
    frame = calibration_frame(windows, tokenizer, nll.tolist())
    size = vocabulary_size(tokenizer)
    return CalibrationResult(
        windows=publish(
            "calibration", key, lambda path: save_calibration_set(path, windows), "safetensors"
        ),
        table=publish(
            "calibration",
            key,
            lambda path: calibration_table(size).write(path, frame),
            "parquet",
        ),
        quality=publish_json("calibration", key, quality.model_dump(mode="json")),
        vocab_size=size,
        verdict=quality.verdict,
        reasons=quality.reasons,
        seconds=time.monotonic() - began,
    )
