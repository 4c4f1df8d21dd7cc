"""The export stage of finished blocks, and what every export stage does."""

import importlib.metadata
from collections import ChainMap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normtweak_core.export.formats.checks import FloatTypeError
from normtweak_core.export.payload import file_sha256, payload_files
from normtweak_core.lazy import lazy
from tasks.engine import events
from tasks.engine.artifacts import ArtifactRef, read_json
from tasks.engine.environment import state_root
from tasks.engine.provenance import made_with
from tasks.engine.stage import Found, stage
from tasks.models.given_data import data_identity
from tasks.models.job import Job, torch_dtype
from tasks.models.work import Work
from tasks.results import (
    BlockResult,
    CalibrationResult,
    ExportResult,
    FinalTuneResult,
    FloatType,
    RefusedExport,
    WidthsResult,
)
from tasks.stages.blocks import fields_read
from tasks.stages.calibrate import data_windows
from tasks.stages.retry import another_float_type
from tasks.tables.calibration import calibration_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from normtweak_core.export.record import ExportRecord

kept = lazy("normtweak_core.export.foreign.kept")
layers = lazy("tasks.models.quantized_layers")
origin = lazy("normtweak_core.export.origin")
safetensors = lazy("safetensors.torch")
skeleton = lazy("normtweak_core.model.skeleton")
structure = lazy("normtweak_core.model.structure")
writer = lazy("normtweak_core.export.writer")

FORMAT_LIBRARY = "compressed-tensors"

# Several recipes can lead to one export, and the files of a cached one are not written again.
ABOUT_THE_MANIFEST = (
    "recipe and lineage are those of the run that wrote this folder. Every recipe that has led to "
    "it has its own in a folder under reports/; in the registry, in reports/ beside model/."
)


def read_by_every_export(work: Work) -> dict[str, Any]:
    """Return what all export stages read, as values of a key."""
    return {
        "export": work.recipe.export.written,
        "model": work.job.fingerprint.sha256,
        "tokenizer": work.job.tokenizer_sha256,
        "generation": work.job.generation_sha256,
    } | _card(work.job.folder)


def _card(folder: Path) -> dict[str, Any]:
    """Return what a card carries on of the float model's; nothing where there is none."""
    card = origin.SourceCard.of(folder)
    if card == origin.SourceCard():
        return {}
    terms = {name: file_sha256(folder / name) for name in card.legal}
    told = {"hub_id": card.hub_id or "", "head": card.head, "citations": list(card.citations)}
    return {"card": told | {"terms": terms}}


def _reads(work: Work, found: Found, part: None) -> dict[str, Any]:
    return read_by_every_export(work) | {
        "quantization": fields_read(work.recipe.quantization, work.job, given=True),
        "library": format_library(work.recipe.export.format),
    }


@stage(
    "export",
    needs=("calibrate", "float type", "widths", "block", "final tune"),
    reads=_reads,
    again=another_float_type(),
)
def export_blocks(
    key: str,
    work: Work,
    calibrate: CalibrationResult,
    float_type: FloatType,
    block: list[BlockResult],
    final_tune: FinalTuneResult | None,
    widths: WidthsResult | None,
) -> ExportResult | RefusedExport:
    """Return the export folder, named after what it was made from.

    Raises:
        InputError: A tensor is missing.
        NonFiniteError: A tensor is NaN or infinite.
        VerificationError: The tokenizer was replaced while the job ran.
    """
    job, config = work.job, work.recipe.quantization
    dtype = torch_dtype(float_type.dtype)
    prefix = structure.find_blocks(skeleton.build_skeleton(job.folder, dtype)).prefix
    quantized = layers.QuantizedLayers(prefix, block, config, final_tune, widths)
    replaced = quantized.norms()
    if final_tune is not None:
        replaced |= safetensors.load_file(state_root() / final_tune.norms.path)
    base = job.base_weights()
    if base is not None:
        replaced = ChainMap(replaced, base.others)
    details = {
        "about": ABOUT_THE_MANIFEST,
        "blocks": [read_json(one.report) for one in block],
        "final_tune": read_json(final_tune.report) if final_tune else None,
    } | details_of(work, calibrate, float_type)
    out = folder_named_after(job, config.in_names, key)

    def write() -> "ExportRecord":
        if base is not None:
            base.require_held(dtype, work.recipe.export.format)
        record = writer.write_export(
            out,
            job.folder,
            quantized,
            replaced,
            work.recipe.export,
            dtype=dtype,
            windows=data_windows(calibrate),
            details=details,
            widths=quantized.widths,
            origin=job.base and job.base.origin(job.source.name),
            image_windows=read_json(calibrate.quality).get("image_windows", 0),
        )
        if base is not None:
            kept.require_codes_kept(out, base)
        return record

    return written(job, write)


def details_of(work: Work, data: CalibrationResult, float_type: FloatType) -> dict[str, Any]:
    """Return what every manifest says of the run: recipe, lineage, a sample, the machine."""
    table = calibration_table(data.vocab_size).read(state_root() / data.table.path)
    return {
        "recipe": work.recipe.model_dump(mode="json"),
        "lineage": source_facts(work, data) | float_type.tags(),
        # As the stage that made them decoded it.
        "calibration_sample": {
            "ids": table["input_ids"][0].tolist(),
            "text": table["text"][0],
        },
        "made_with": made_with(work.job, work.modules).model_dump(mode="json"),
    }


def source_facts(work: Work, data: CalibrationResult) -> dict[str, str]:
    """Return names and hashes of what a result is made from."""
    job = work.job
    return {
        "source_model": job.source.name,
        "source_revision": job.source.revision or "",
        "source_sha256": job.fingerprint.sha256,
        "source_tokenizer_sha256": job.tokenization_sha256,
        "calibration_sha256": data.windows.sha256,
        "calibration_data": data_identity(job, work.data),
    } | base_facts(job)


def base_facts(job: Job) -> dict[str, str]:
    """Return where codes come from that a checkpoint has given; nothing where none has."""
    return {} if job.base is None else job.base.facts() | {"base_sha256": job.base_sha256}


def written(job: Job, write: "Callable[[], ExportRecord]") -> ExportResult | RefusedExport:
    """Return the result of an export stage: what was written, or why its float type is refused.

    Raises:
        VerificationError: The tokenizer was replaced while the job ran.
    """
    events.record("export", part="begin")
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


def folder_named_after(job: Job, kind: str, key: str) -> Any:
    """Return an export folder that tells the model, what was done to it, and what made it."""
    model = job.source.name.rstrip("/").rpartition("/")[2].replace(":", "-")
    return state_root() / "exports" / f"{model}-{kind}-{key.rpartition('-')[2][:12]}"


def format_library(form: str) -> str | None:
    """Return the library that has a part in an export of a format; None where none has."""
    return None if form == "gptq" else library_version()


def library_version() -> str:
    """Return name and version of the library that reads our own format in this environment."""
    return f"{FORMAT_LIBRARY} {importlib.metadata.version(FORMAT_LIBRARY)}"
