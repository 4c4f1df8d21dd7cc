"""The final stage: tune all norms of the quantized model end to end."""

import logging
import time
from typing import TYPE_CHECKING, Any

from prefect import task

from normtweak_core.tweak.config import FinalTuneConfig
from tasks.engine import events
from tasks.engine.artifacts import content_hash, publish, publish_json
from tasks.engine.environment import state_root
from tasks.engine.progress import Progress
from tasks.models.job import STAGE, Job, torch_dtype
from tasks.results import BlockResult, CalibrationResult, FinalTuneResult
from tasks.stages.blocks import fields_read
from tasks.stages.chain import ChainSettings
from tasks.tables.drift import TUNED

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

SOURCES = [
    __name__,
    "normtweak_core.calibration.storage",
    "normtweak_core.model.loading",
    "normtweak_core.quantization.model_drift",
    "normtweak_core.quantization.storage",
    "normtweak_core.tweak.final",
]


def final_tune_key(
    job: Job,
    calibration: CalibrationResult,
    blocks: list[BlockResult],
    settings: ChainSettings,
    config: FinalTuneConfig,
) -> str:
    """Return the key of the final tune."""
    inputs = {
        "final_tune": config,
        "seed": job.seed,
        "model": job.fingerprint.sha256,
        "export_dtype": settings.export_dtype,
        "quantization": fields_read(settings.quantization),
    }
    parents = [calibration.windows.sha256, *(content_hash(block) for block in blocks)]
    return job.key("final-tune", parents=parents, inputs=inputs, sources=SOURCES)


@task(task_run_name="final-tune", **STAGE)
def final_tune_stage(
    key: str,
    config: FinalTuneConfig,
    job: Any,
    calibration: Any,
    blocks: Any,
    settings: Any,
    progress: Any,
) -> FinalTuneResult:
    """Return the tuned norms, or none where the held-out divergence did not fall.

    Raises:
        NonFiniteError: The loss became NaN or infinite.
    """
    from safetensors.torch import save_file

    from normtweak_core.calibration.storage import load_calibration_set
    from normtweak_core.model.loading import load_causal_lm
    from normtweak_core.quantization.block import num_training_windows
    from normtweak_core.quantization.model_drift import model_drift
    from normtweak_core.quantization.storage import save_drift
    from normtweak_core.tweak.final import TuningWindows, final_tune

    events.record("final-tune", part="begin")
    began = time.monotonic()
    bar: Progress = progress
    float_model = load_causal_lm(job.folder, torch_dtype(job.model.dtype), job.device)
    export_dtype = torch_dtype(settings.export_dtype)
    quantized, masters = _quantized_model(job, blocks, settings)
    ids = load_calibration_set(state_root() / calibration.windows.path).input_ids
    windows = TuningWindows(ids, num_training_windows(len(ids)))
    with bar.stage("final tune", "steps") as advance:
        report, norms = final_tune(
            quantized,
            float_model,
            windows,
            config,
            masters,
            export_dtype,
            job.seed,
            lambda step, steps, loss: advance(step, steps),
        )
    _set_norms(quantized, masters | norms, export_dtype)
    drift = model_drift(quantized, float_model, ids)
    tensors = {name: value.cpu().contiguous() for name, value in sorted(norms.items())}
    return FinalTuneResult(
        norms=publish(
            "final-tune",
            key,
            lambda path: save_file(tensors, path, metadata={"format": "pt"}),
            "safetensors",
        ),
        report=publish_json("final-tune", key, report.model_dump(mode="json")),
        drift=publish(
            "final-tune", key, lambda path: save_drift(path, {TUNED: drift}), "safetensors"
        ),
        seconds=time.monotonic() - began,
    )


def _quantized_model(
    job: Job, blocks: list[BlockResult], settings: ChainSettings
) -> "tuple[PreTrainedModel, dict[str, Tensor]]":
    """Return the quantized model as exported so far, and the float32 masters of tweaked norms."""
    from normtweak_core.model.loading import load_causal_lm
    from normtweak_core.model.structure import find_blocks, find_linears, set_linear_weight
    from tasks.models.quantized_layers import QuantizedLayers

    model = load_causal_lm(job.folder, torch_dtype(job.model.dtype), job.device)
    layers = QuantizedLayers(find_blocks(model).prefix, blocks, settings.quantization)
    linears = find_linears(model)
    for name, weight in layers.items():
        set_linear_weight(linears[name], weight.dequantize().to(job.device))
    masters = {name: master.to(job.device) for name, master in layers.norms().items()}
    _set_norms(model, masters, torch_dtype(settings.export_dtype))
    return model, masters


def _set_norms(
    model: "PreTrainedModel", masters: "dict[str, Tensor]", export_dtype: "torch.dtype"
) -> None:
    """Give each norm its master, or the value it has, rounded as in the export."""
    from normtweak_core.tweak.tweak import norm_parameters

    for name, parameter in norm_parameters(model).items():
        parameter.data.copy_(masters.get(name, parameter.data).to(export_dtype))
