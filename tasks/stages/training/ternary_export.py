"""The export stage of a ternary model."""

import importlib.metadata
from typing import TYPE_CHECKING, Any

from prefect import task

from normtweak_core.export.config import ExportConfig
from normtweak_core.ternary.config import TernaryConfig
from tasks.engine import events
from tasks.engine.artifacts import content_hash
from tasks.engine.environment import state_root
from tasks.engine.provenance import RECORD_SOURCE, made_with
from tasks.models.job import STAGE, Job, torch_dtype
from tasks.results import CalibrationResult, ExportResult, RefusedExport
from tasks.stages.export import named_after, written
from tasks.stages.training.segments import SegmentResult
from tasks.stages.training.surgery import data_windows, read_plan

if TYPE_CHECKING:
    from normtweak_core.export.record import ExportRecord

SOURCES = [
    __name__,
    "normtweak_core.calibration.storage",
    "normtweak_core.export.writer",
    "normtweak_core.model.loading",
    "normtweak_core.ternary.finished",
    RECORD_SOURCE,
]


def ternary_export_key(
    job: Job,
    data: CalibrationResult,
    trained: SegmentResult,
    config: ExportConfig,
    export_dtype: str,
) -> str:
    """Return the key of the export of a trained model."""
    inputs = {
        "export": config.written,
        "export_dtype": export_dtype,
        "library": f"gguf {importlib.metadata.version('gguf')}",  # writes the file beside it
        "model": job.fingerprint.sha256,
        "tokenizer": job.tokenizer_sha256,
        "generation": job.generation_sha256,
    }
    parents = [content_hash(trained), data.windows.sha256]
    return job.key("export", parents=parents, inputs=inputs, sources=SOURCES)


@task(task_run_name="export", **STAGE)
def ternary_export_stage(
    key: str,
    config: ExportConfig,
    export_dtype: str,
    ternary: TernaryConfig,
    job: Any,
    surgery: Any,
    trained: Any,
    data: Any,
    details: Any,
) -> ExportResult | RefusedExport:
    """Return the export folder of a ternary model.

    Raises:
        InputError: A tensor is missing.
        NonFiniteError: A tensor is NaN or infinite.
        VerificationError: The tokenizer was replaced while the job ran.
    """
    from safetensors.torch import load_file

    from normtweak_core.export.writer import write_ternary_export
    from normtweak_core.model.loading import load_causal_lm
    from normtweak_core.ternary.finished import FinishedLayers, other_tensors
    from normtweak_core.ternary.surgery import apply_surgery

    events.record("export", part="begin")
    plan, dtype = read_plan(surgery), torch_dtype(export_dtype)
    model = load_causal_lm(job.folder, torch_dtype("float32"), "cpu")
    apply_surgery(model, plan, ternary)
    weights = load_file(state_root() / trained.weights.path)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(weights[name])
    out = state_root() / "exports" / named_after(job, "ternary", key)

    def write() -> "ExportRecord":
        return write_ternary_export(
            out,
            job.folder,
            FinishedLayers(model, dtype),
            other_tensors(model),
            config,
            rms_norm_eps=plan.eps,
            dtype=dtype,
            windows=data_windows(data),
            details=details | {"made_with": made_with(job).model_dump(mode="json")},
        )

    return written(job, write)
