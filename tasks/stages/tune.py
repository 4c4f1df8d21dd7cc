"""The final stage: tune all norms of the quantized model end to end."""

import logging
import time
from typing import Any

from prefect import task

from normtweak_core.tweak.config import FinalTuneConfig
from tasks.engine import events
from tasks.engine.artifacts import content_hash, publish, publish_json
from tasks.engine.environment import state_root
from tasks.models.job import STAGE, Job, torch_dtype
from tasks.results import BlockResult, CalibrationResult, FinalTuneResult
from tasks.stages.blocks import fields_read
from tasks.stages.chain import ChainSettings
from tasks.tables.drift import TUNED

log = logging.getLogger(__name__)

SOURCES = [
    __name__,
    "normtweak_core.calibration.storage",
    "normtweak_core.model.loading",
    "normtweak_core.quantization.dense_model",
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
    from normtweak_core.model.structure import find_blocks
    from normtweak_core.quantization.dense_model import dense_model, set_norms
    from normtweak_core.quantization.model_drift import model_drift
    from normtweak_core.quantization.storage import save_drift
    from normtweak_core.tweak.final import TuningWindows, final_tune
    from tasks.models.quantized_layers import QuantizedLayers

    events.record("final-tune", part="begin")
    began = time.monotonic()
    dtype, export_dtype = torch_dtype(job.model.dtype), torch_dtype(settings.export_dtype)
    float_model = load_causal_lm(job.folder, dtype, job.device)
    layers = QuantizedLayers(find_blocks(float_model).prefix, blocks, settings.quantization)
    masters = layers.norms()
    quantized = dense_model(job.folder, layers, masters, dtype, export_dtype, job.device)
    ids = load_calibration_set(state_root() / calibration.windows.path).input_ids
    with progress.stage("final tune", "steps") as advance:
        report, norms = final_tune(
            quantized,
            float_model,
            TuningWindows.of(ids),
            config,
            masters,
            export_dtype,
            job.seed,
            lambda step, steps, loss: advance(step, steps),
        )
    set_norms(quantized, masters | norms, export_dtype)
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
