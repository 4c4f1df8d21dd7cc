"""The export stage, and the proof that an independent reader finds in it what was quantized."""

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task

from normtweak_core.export.config import ExportConfig
from normtweak_core.export.formats.checks import FloatTypeError
from normtweak_core.export.payload import payload_files
from normtweak_core.export.verification.verify import reader_python
from tasks.engine import events
from tasks.engine.artifacts import ArtifactRef, content_hash, publish_json
from tasks.engine.environment import REPOSITORY, state_root
from tasks.engine.provenance import RECORD_SOURCE, made_with
from tasks.models.job import STAGE, Job, torch_dtype
from tasks.results import (
    BlockResult,
    CalibrationResult,
    ExportResult,
    FinalTuneResult,
    RefusedExport,
    VerificationResult,
)
from tasks.stages.blocks import fields_read
from tasks.stages.chain import ChainSettings
from tasks.stages.training.surgery import data_windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from normtweak_core.export.record import ExportRecord

log = logging.getLogger(__name__)

EXPORT_SOURCES = [
    __name__,
    "normtweak_core.calibration.storage",
    "normtweak_core.export.writer",
    "normtweak_core.quantization.storage",
    RECORD_SOURCE,
]
# The reader is launched by its path: nothing imports it.
VERIFY_SOURCES = [
    __name__,
    "normtweak_core.export.verification.reader",
    "normtweak_core.export.verification.verify",
]
FORMAT_LIBRARY = "compressed-tensors"


def export_key(
    job: Job,
    calibration: CalibrationResult,
    blocks: list[BlockResult],
    tuned: FinalTuneResult | None,
    settings: ChainSettings,
    config: ExportConfig,
) -> str:
    """Return the key of the export."""
    inputs = {
        "export": config.written,
        "export_dtype": settings.export_dtype,
        "quantization": fields_read(settings.quantization),
        "model": job.fingerprint.sha256,
        "tokenizer": job.tokenizer_sha256,
        "generation": job.generation_sha256,
        "library": format_library(config.format),
        "tuned": tuned is not None,
    }
    parents = [content_hash(block) for block in blocks]
    parents += [content_hash(tuned)] if tuned else []
    parents += [calibration.windows.sha256]  # part of the probe
    return job.key("export", parents=parents, inputs=inputs, sources=EXPORT_SOURCES)


@task(task_run_name="export", **STAGE)
def export_stage(
    key: str,
    config: ExportConfig,
    job: Any,
    blocks: Any,
    tuned: Any,
    settings: Any,
    calibration: Any,
    details: Any,
) -> ExportResult | RefusedExport:
    """Return the export folder, named after what it was made from.

    Raises:
        InputError: A tensor is missing.
        NonFiniteError: A tensor is NaN or infinite.
        VerificationError: The tokenizer was replaced while the job ran.
    """
    from safetensors.torch import load_file

    from normtweak_core.export.writer import write_export
    from normtweak_core.model.skeleton import build_skeleton
    from normtweak_core.model.structure import find_blocks
    from tasks.models.quantized_layers import QuantizedLayers

    events.record("export", part="begin")
    dtype = torch_dtype(settings.export_dtype)
    prefix = find_blocks(build_skeleton(job.folder, dtype)).prefix
    layers = QuantizedLayers(prefix, blocks, settings.quantization)
    replaced = layers.norms()
    if tuned is not None:
        replaced |= load_file(state_root() / tuned.norms.path)
    out = state_root() / "exports" / export_folder_name(job, settings, key)

    def write() -> "ExportRecord":
        return write_export(
            out,
            job.folder,
            layers,
            replaced,
            config,
            dtype=dtype,
            windows=data_windows(calibration),
            details=details | {"made_with": made_with(job).model_dump(mode="json")},
        )

    return written(job, write)


def written(job: Job, write: "Callable[[], ExportRecord]") -> ExportResult | RefusedExport:
    """Return the result of an export stage: what was written, or why its float type is refused.

    Args:
        job: Of the float model, whose tokenizer was copied.
        write: Writes the folder.

    Raises:
        VerificationError: The tokenizer was replaced while the job ran.
    """
    try:
        record = write()
    except FloatTypeError as error:
        return RefusedExport(dtype=error.dtype, why=error.why, holds=error.holds)
    job.check_tokenizer()
    events.record("export", part="written")
    return exported(record)


def exported(record: "ExportRecord") -> ExportResult:
    """Return the result of an export stage, with a reference to every file that was written."""
    out = record.folder
    entries = (record.consumers or {}).values()
    beside = sorted({entry["file"] for entry in entries if "sha256" in entry})
    return ExportResult(
        folder=out.relative_to(state_root()).as_posix(),
        export_sha256=record.payload_sha256,
        dtype=record.dtype,
        files=[ArtifactRef.to(path) for path in payload_files(out)],
        beside=[ArtifactRef.to(out / name) for name in beside],
        manifest=ArtifactRef.to(out / "normtweak.json"),
        probe=ArtifactRef.to(out / "verify" / "probe.safetensors"),
        bits_per_weight=record.bits_per_weight,
        size_bytes=record.size_bytes,
    )


def export_folder_name(job: Job, settings: ChainSettings, key: str) -> str:
    """Return a folder name that tells what is inside: model, width, group, and what made it."""
    config = settings.quantization
    group = f"g{config.group_size}" if config.group_size else "channel"
    return named_after(job, f"w{config.bits}{group}", key)


def named_after(job: Job, kind: str, key: str) -> str:
    """Return the name of an export folder: the model, what was done to it, and what made it."""
    model = job.source.name.rstrip("/").rpartition("/")[2].replace(":", "-")
    return f"{model}-{kind}-{key.rpartition('-')[2][:12]}"


def verify_key(job: Job, export: ExportResult) -> str:
    """Return the key of the verification, which another reader does not find done.

    Raises:
        InputError: The folder is not an export.
    """
    python = reader_python(state_root() / export.folder, REPOSITORY)
    reader = _library() if python == Path(sys.executable) else environment_sha256(python)
    return job.key(
        "verify",
        parents=[content_hash(export)],
        inputs={"reader": reader},
        sources=VERIFY_SOURCES,
    )


def environment_sha256(python: Path) -> str | None:
    """Return one hash of the packages of a virtual environment; None where it does not exist.

    Of what is installed, not of the lock: a lock may be newer than the environment made from it.
    """
    found = python.parents[1].glob("lib/python*/site-packages/*.dist-info")
    lines = sorted(f"{path.parents[1].name} {path.name}" for path in found)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None


def format_library(form: str) -> str | None:
    """Return the library that has a part in an export of a format; None where none has."""
    return None if form == "gptq" else _library()


def _library() -> str:
    """Name and version of the library that reads the format in this environment."""
    return f"{FORMAT_LIBRARY} {importlib.metadata.version(FORMAT_LIBRARY)}"


@task(task_run_name="verify", **STAGE)
def verify_stage(key: str, export: Any, timeout: float | None) -> VerificationResult:
    """Return what stock transformers found in the export, in a process without our code.

    Args:
        key: Of this stage.
        export: What is opened.
        timeout: Seconds that the reader may take; None: by the size of the model.

    Raises:
        VerificationError: It found something else than was quantized, or took too long.
    """
    from normtweak_core.export.verification.verify import verify_export

    events.record("verify", part="begin")
    folder = state_root() / export.folder
    report = verify_export(folder, reader_python(folder, REPOSITORY), timeout)
    facts = json.loads(json.dumps(dataclasses.asdict(report)))
    return VerificationResult(
        report=publish_json("verification", key, facts),
        tensors_compared=report.num_tensors,
        layers_compared=report.num_quantized,
        logit_difference=report.logit_difference,
    )
