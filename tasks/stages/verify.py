"""The proof that an independent reader finds in an export what was quantized."""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from normtweak_core.export.verification.verify import reader_python, verify_export
from tasks.engine import events
from tasks.engine.artifacts import publish_json
from tasks.engine.environment import REPOSITORY, state_root
from tasks.engine.stage import Found, stage
from tasks.models.work import Work
from tasks.results import ExportResult, VerificationResult
from tasks.stages.export import library_version


def _reads(work: Work, found: Found, part: None) -> dict[str, Any]:
    python = reader_python(state_root() / found["export"].folder, REPOSITORY)
    is_here = python == Path(sys.executable)
    return {"reader": library_version() if is_here else environment_sha256(python)}


def environment_sha256(python: Path) -> str | None:
    """Return one hash of the packages of a virtual environment; None where it does not exist.

    Of what is installed, not of the lock: a lock may be newer than the environment made from it.
    """
    found = python.parents[1].glob("lib/python*/site-packages/*.dist-info")
    lines = sorted(f"{path.parents[1].name} {path.name}" for path in found)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None


# The reader is launched by its path: nothing imports it.
@stage(
    "verify",
    needs=("export",),
    reads=_reads,
    sources=(
        "normtweak_core.export.verification.reader",
        "normtweak_core.export.verification.gguf_reader",
    ),
)
def verify(key: str, work: Work, export: ExportResult) -> VerificationResult:
    """Return what stock transformers found in the export, in a process without our code.

    Raises:
        VerificationError: It found something else than was quantized, or took too long.
    """
    events.record("verify", part="begin")
    folder = state_root() / export.folder
    timeout = work.recipe.export.verify_timeout
    report = verify_export(folder, reader_python(folder, REPOSITORY), timeout)
    facts = json.loads(json.dumps(dataclasses.asdict(report)))
    return VerificationResult(
        report=publish_json("verification", key, facts),
        tensors_compared=report.num_tensors,
        layers_compared=report.num_quantized,
        logit_difference=report.logit_difference,
    )
