"""The export stage of a ternary model."""

import importlib.metadata
from typing import Any

from normtweak_core.lazy import lazy
from tasks.engine.environment import state_root
from tasks.engine.stage import Found, stage
from tasks.models.job import torch_dtype
from tasks.models.work import Work
from tasks.results import CalibrationResult, ExportResult, FloatType, RefusedExport
from tasks.stages.calibrate import data_windows
from tasks.stages.export import details_of, folder_named_after, read_by_every_export, written
from tasks.stages.retry import another_float_type
from tasks.stages.training.surgery import SurgeryResult, read_plan
from tasks.stages.training.training import SegmentResult

finished = lazy("normtweak_core.ternary.finished")
loading = lazy("normtweak_core.model.loading")
safetensors = lazy("safetensors.torch")
surgeries = lazy("normtweak_core.ternary.surgery")
writer = lazy("normtweak_core.export.writer")


def _reads(work: Work, found: Found, part: None) -> dict[str, Any]:
    # That library writes the file beside it.
    return read_by_every_export(work) | {"library": f"gguf {importlib.metadata.version('gguf')}"}


@stage(
    "export",
    needs=("data", "surgery", "float type", "training"),
    reads=_reads,
    again=another_float_type(),
)
def export_ternary(
    key: str,
    work: Work,
    surgery: SurgeryResult,
    training: list[SegmentResult],
    float_type: FloatType,
    data: CalibrationResult,
) -> ExportResult | RefusedExport:
    """Return the export folder of a ternary model; raises what `export_blocks` does."""
    job, plan, dtype = work.job, read_plan(surgery), torch_dtype(float_type.dtype)
    model = loading.load_causal_lm(job.folder, torch_dtype("float32"), "cpu")
    surgeries.apply_surgery(model, plan, work.recipe.ternary)
    weights = safetensors.load_file(state_root() / training[-1].weights.path)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(weights[name])
    details = details_of(work, data, float_type) | {"surgery": surgery.losses}
    out = folder_named_after(job, "ternary", key)
    return written(
        job,
        lambda: writer.write_ternary_export(
            out,
            job.folder,
            finished.FinishedLayers(model, dtype),
            finished.other_tensors(model),
            work.recipe.export,
            rms_norm_eps=plan.eps,
            dtype=dtype,
            windows=data_windows(data),
            details=details,
        ),
    )
