"""`normtweak verify`: which interpreter reads an export, and what was compared, in sentences."""

import json
import sys
from pathlib import Path

from normtweak_core.errors import InputError
from normtweak_core.export.checks import GPTQ_READER
from normtweak_core.export.folder import MANIFEST
from normtweak_core.export.verify import VerificationReport


def reader_of(folder: Path) -> Path:
    """Return the Python whose packages read the export's format.

    Raises:
        InputError: The folder is no export, or that interpreter does not exist.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        found = f"{folder} does not" if folder.is_dir() else f"there is no folder {folder}"
        raise InputError(
            f"an export folder holds {MANIFEST}; {found}. Give the folder that an export was "
            "written to."
        )
    try:
        written = json.loads(manifest.read_text(encoding="utf-8"))["export"]["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{manifest} must be the manifest of an export; it is damaged. Export again."
        ) from error
    if written != "gptq":
        return Path(sys.executable)
    reader = Path(GPTQ_READER, "bin", "python")
    if not reader.is_file():
        raise InputError(
            f"an export in gptq format is read by {reader}, which does not exist. Run `make "
            "reader-gptq` and start in that folder."
        )
    return reader


def report_lines(folder: Path, report: VerificationReport) -> list[str]:
    """Return what an independent reader found, line by line."""
    versions = ", ".join(f"{name} {version}" for name, version in report.reader_versions.items())
    return [
        f"{folder}: the reader finds what was quantized",
        f"format: {report.format}, opened by {versions}",
        f"weights: {report.num_tensors} tensors equal bit for bit, {report.num_quantized} of them "
        "dequantized",
        f"logits: largest difference {report.logit_difference:.2g} of the largest logit, allowed "
        f"{report.logit_tolerance:.2g}; same first choice at {100 * report.argmax_agreement:.1f} %",
        f"tokenizer: {'same ids' if report.tokenizer else 'none in the export'}",
        f"payload SHA-256: {report.payload_sha256}",
        f"seconds: {report.seconds:.1f}",
    ]
