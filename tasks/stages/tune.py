"""The final stage: tune norms, and scales, of the quantized model end to end."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normtweak_core.lazy import lazy
from tasks.engine import events
from tasks.engine.artifacts import ArtifactRef, publish, publish_json
from tasks.engine.stage import Found, stage
from tasks.models.job import torch_dtype
from tasks.models.work import Work
from tasks.results import BlockResult, CalibrationResult, FinalTuneResult, FloatType, WidthsResult
from tasks.stages.blocks import fields_read
from tasks.stages.calibrate import data_with_images
from tasks.tables.drift import TUNED

if TYPE_CHECKING:
    from torch import Tensor

dense = lazy("normtweak_core.quantization.dense_model")
drifts = lazy("normtweak_core.quantization.model_drift")
final = lazy("normtweak_core.tweak.final")
layers = lazy("tasks.models.quantized_layers")
safetensors = lazy("safetensors.torch")
storage = lazy("normtweak_core.quantization.storage")
streaming = lazy("normtweak_core.model.streaming")
structure = lazy("normtweak_core.model.structure")


def _reads(work: Work, found: Found, part: None) -> dict[str, Any]:
    config = work.recipe.final_tune
    unread = set() if config.scales else {"scale_lr"}
    return {
        "final_tune": config.model_dump(exclude=unread),
        "seed": work.job.seed,
        "model": work.job.fingerprint.sha256,
        "quantization": fields_read(work.recipe.quantization, work.job, given=True),
    }


@stage(
    "final tune",
    needs=("calibrate", "float type", "widths", "block"),
    reads=_reads,
    when=lambda work: work.recipe.final_tune.enabled,
)
def final_tune(
    key: str,
    work: Work,
    calibrate: CalibrationResult,
    float_type: FloatType,
    widths: WidthsResult | None,
    block: list[BlockResult],
) -> FinalTuneResult:
    """Return the tuned norms, or none where the held-out divergence did not fall.

    Raises:
        NonFiniteError: The loss became NaN or infinite.
    """
    events.record("final-tune", part="begin")
    began = time.monotonic()
    job, config = work.job, work.recipe.quantization
    dtype, export_dtype = torch_dtype(job.model.dtype), torch_dtype(float_type.dtype)
    windows = final.TuningWindows.of(data_with_images(calibrate))
    float_model = streaming.StreamedModel(job.folder, dtype, job.device)
    expected = final.walked_targets(float_model, windows)
    prefix = structure.find_blocks(float_model.model).prefix
    finished = layers.QuantizedLayers(prefix, block, config, widths=widths)
    masters = finished.norms()
    where = dtype, export_dtype, job.device, job.base_others()
    quantized = dense.dense_model(job.folder, finished, masters, *where)
    if work.recipe.final_tune.scales:
        dense.put_scales(quantized, finished, export_dtype)
    with work.progress.stage("final tune", "steps") as advance:
        report, trained = final.final_tune(
            quantized,
            expected,
            windows,
            work.recipe.final_tune,
            masters,
            export_dtype,
            job.seed,
            lambda step, steps, loss: advance(step, steps),
        )
    norms, scales = final.put_tuned(quantized, trained, export_dtype)
    held = streaming.HeldModel(quantized)
    drift = drifts.model_drift(held, float_model, windows.input_ids)

    def written(tensors: "dict[str, Tensor]", what: str) -> ArtifactRef:
        ordered = {name: value.cpu().contiguous() for name, value in sorted(tensors.items())}

        def write(path: Path) -> None:
            safetensors.save_file(ordered, path, metadata={"format": "pt"})

        return publish(what, key, write, "safetensors")

    def write_drift(path: Path) -> None:
        storage.save_drift(path, {TUNED: drift})

    return FinalTuneResult(
        norms=written(norms, "final-tune"),
        scales=written(scales, "final-tune-scales") if work.recipe.final_tune.scales else None,
        report=publish_json("final-tune", key, report.model_dump(mode="json")),
        drift=publish("final-tune", key, write_drift, "safetensors"),
        seconds=time.monotonic() - began,
    )
