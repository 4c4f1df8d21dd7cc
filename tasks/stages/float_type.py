"""The stages that settle the float type of an export before the long work."""

from typing import Any

from normtweak_core.errors import InputError
from normtweak_core.lazy import lazy
from tasks.engine import events
from tasks.engine.stage import Found, stage
from tasks.models.starting_point import StartingPoint
from tasks.models.work import Work
from tasks.results import CalibrationResult, FloatType
from tasks.stages.calibrate import data_windows
from tasks.stages.training.surgery import SurgeryResult, read_plan

choice = lazy("normtweak_core.export.float_type")
probes = lazy("normtweak_core.export.verification.probe")
ternary_start = lazy("normtweak_core.ternary.start")

GRID = {"bits", "group_size", "symmetric", "levels"}  # what the size of a scale follows from
START = {"norm", "affine", "share_gains", "activation_bits"}  # and of a ternary model its inputs


def _reads(work: Work, found: Found, part: None) -> dict[str, Any]:
    return {
        "export": work.recipe.export.written,
        "model": work.job.fingerprint.sha256,
        "tokenizer": work.job.tokenizer_sha256,  # says what begins a document
    }


def _reads_grid(work: Work, found: Found, part: None) -> dict[str, Any]:
    config = work.recipe.quantization
    grid = config.at(config.widths[-1]).model_dump(include=GRID)  # of the finest grid
    return _reads(work, found, part) | {"quantization": grid} | work.job.of_base


def _reads_ternary(work: Work, found: Found, part: None) -> dict[str, Any]:
    read = work.recipe.ternary.model_dump(include=START)
    return _reads(work, found, part) | {"ternary": read}


@stage("float type", needs=("calibrate",), reads=_reads_grid)
def float_type(work: Work, calibrate: CalibrationResult) -> FloatType:
    """Return the float type in which readers can run what is made of the float model.

    Raises:
        FloatTypeError: The one that the recipe asks for does not hold it.
        NonFiniteError: A weight is NaN or infinite, or the model's own logits are.
    """
    events.record("float type", part="begin")
    job, recipe = work.job, work.recipe
    rows = probes.probe_rows(job.folder, data_windows(calibrate))
    return _result(
        choice.choose_export_dtype(
            recipe.export, job.folder, rows, recipe.quantization, job.device, job.base_weights()
        )
    )


@stage("float type", needs=("data", "surgery"), reads=_reads_ternary)
def ternary_float_type(work: Work, data: CalibrationResult, surgery: SurgeryResult) -> FloatType:
    """Return the float type in which readers can run the model as its training starts.

    Raises:
        FloatTypeError: The one that the recipe asks for does not hold it.
        NonFiniteError: A weight is NaN or infinite, or the model's own logits are.
    """
    events.record("float type", part="begin")
    job, recipe = work.job, work.recipe
    rows = probes.probe_rows(job.folder, data_windows(data))
    trial = ternary_start.StartTrial(
        job.folder, rows, read_plan(surgery), recipe.ternary, job.device
    )
    return _result(choice.choose_float_type(recipe.export, trial))


@stage("float type", needs=("data", "start"), reads=_reads)
def start_float_type(work: Work, data: CalibrationResult, start: StartingPoint) -> FloatType:
    """Return the float type of an export that is trained on, which its readers can run.

    Raises:
        InputError: They cannot.
    """
    events.record("float type", part="begin")
    job = work.job
    rows = probes.probe_rows(job.folder, data_windows(data))
    trial = probes.ExportTrial(start.weights, job.folder, rows)
    dtype = start.source.dtype
    if (why := trial(dtype)) is not None:
        holds = [name for name in choice.DTYPES if name != dtype and trial(name) is None]
        raise InputError(
            f"must be an export that its readers can run; {start.source.folder} is {dtype}, in "
            f"which they cannot: {why}",
            key="model.source",
            remedy=f"quantize the float model again with export.dtype {' or '.join(holds)}"
            if holds
            else "train another export on",
        )
    return FloatType(dtype=dtype, refused=start.source.refused)


def _result(chosen: Any) -> FloatType:
    name = str(chosen.dtype).removeprefix("torch.")
    return FloatType(dtype=name, refused=chosen.refused, note=chosen.note)
