"""The stages that settle the float type of an export before the long work."""

from typing import Any

from prefect import task

from normtweak_core.export.config import ExportConfig
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.ternary.config import TernaryConfig
from tasks.engine import events
from tasks.engine.artifacts import content_hash
from tasks.models.job import STAGE, Job
from tasks.models.starting_point import StartingPoint
from tasks.results import CalibrationResult, FloatType
from tasks.stages.training.surgery import SurgeryResult, data_windows, read_plan

SOURCES = [
    __name__,
    "normtweak_core.calibration.storage",
    "normtweak_core.export.exported",
    "normtweak_core.export.float_type",
    "normtweak_core.export.verification.probe",
    "normtweak_core.export.verification.verify",
    "normtweak_core.finetune.model",
    "normtweak_core.finetune.source",
    "normtweak_core.ternary.start",
    "tasks.models.starting_point",
    "tasks.stages.training.surgery",
]
GRID = {"bits", "group_size", "symmetric", "levels"}  # what the size of a scale follows from


def _inputs(job: Job, config: ExportConfig) -> dict[str, Any]:
    return {
        "export": config.written,
        "model": job.fingerprint.sha256,
        "tokenizer": job.tokenizer_sha256,  # says what begins a document
    }


def float_type_key(
    job: Job,
    config: ExportConfig,
    calibration: CalibrationResult,
    quantization: QuantizationConfig,
) -> str:
    """Return the key of the float type of a quantized model."""
    inputs = _inputs(job, config) | {"quantization": quantization.model_dump(include=GRID)}
    parents = [calibration.windows.sha256]
    return job.key("float-type", parents=parents, inputs=inputs, sources=SOURCES)


@task(task_run_name="float-type", **STAGE)
def float_type_stage(
    key: str, config: ExportConfig, quantization: QuantizationConfig, job: Any, calibration: Any
) -> FloatType:
    """Return the float type in which readers can run what is made of the float model.

    Raises:
        FloatTypeError: The one that the recipe asks for does not hold it.
        NonFiniteError: A weight is NaN or infinite, or the model's own logits are.
    """
    from normtweak_core.export.float_type import choose_export_dtype
    from normtweak_core.export.verification.probe import probe_rows

    events.record("float type", part="begin")
    rows = probe_rows(job.folder, data_windows(calibration))
    return _result(choose_export_dtype(config, job.folder, rows, quantization, job.device))


def ternary_float_type_key(
    job: Job,
    config: ExportConfig,
    data: CalibrationResult,
    surgery: SurgeryResult,
    ternary: TernaryConfig,
) -> str:
    """Return the key of the float type of a ternary model, foreseen before its training."""
    read = ternary.model_dump(include={"norm", "affine", "share_gains", "activation_bits"})
    inputs = _inputs(job, config) | {"ternary": read}
    parents = [data.windows.sha256, content_hash(surgery)]
    return job.key("float-type", parents=parents, inputs=inputs, sources=SOURCES)


@task(task_run_name="float-type", **STAGE)
def ternary_float_type_stage(
    key: str, config: ExportConfig, ternary: TernaryConfig, job: Any, data: Any, surgery: Any
) -> FloatType:
    """Return the float type in which readers can run the model as its training starts.

    Raises:
        FloatTypeError: The one that the recipe asks for does not hold it.
        NonFiniteError: A weight is NaN or infinite, or the model's own logits are.
    """
    from normtweak_core.export.float_type import choose_float_type
    from normtweak_core.export.verification.probe import probe_rows
    from normtweak_core.ternary.start import StartTrial

    events.record("float type", part="begin")
    rows = probe_rows(job.folder, data_windows(data))
    trial = StartTrial(job.folder, rows, read_plan(surgery), ternary, job.device)
    return _result(choose_float_type(config, trial))


def start_float_type_key(
    job: Job, config: ExportConfig, data: CalibrationResult, start: StartingPoint
) -> str:
    """Return the key of the trial of an export that is trained on."""
    parents = [data.windows.sha256, content_hash(start.export)]
    return job.key("float-type", parents=parents, inputs=_inputs(job, config), sources=SOURCES)


@task(task_run_name="float-type", **STAGE)
def start_float_type_stage(key: str, job: Any, data: Any, start: Any) -> FloatType:
    """Return the float type of an export that is trained on, which its readers can run.

    Raises:
        InputError: They cannot.
    """
    from normtweak_core.errors import InputError
    from normtweak_core.export.float_type import DTYPES
    from normtweak_core.export.verification.probe import ExportTrial, probe_rows

    events.record("float type", part="begin")
    begun: StartingPoint = start
    trial = ExportTrial(begun.weights, job.folder, probe_rows(job.folder, data_windows(data)))
    dtype = begun.source.dtype
    if (why := trial(dtype)) is not None:
        holds = [name for name in DTYPES if name != dtype and trial(name) is None]
        raise InputError(
            f"must be an export that its readers can run; {begun.source.folder} is {dtype}, in "
            f"which they cannot: {why}",
            key="model.source",
            remedy=f"quantize the float model again with export.dtype {' or '.join(holds)}"
            if holds
            else "train another export on",
        )
    return FloatType(dtype=dtype)


def _result(choice: Any) -> FloatType:
    return FloatType(dtype=str(choice.dtype).removeprefix("torch."), refused=choice.refused)
