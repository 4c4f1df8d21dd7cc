"""From a float model to a quantized one in one call.

It goes the way of `normtweak quantize`, through the same functions, without cache, evaluation and
registry: on the same settings and as many threads both write the same bytes.
"""

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, no_type_check

from torch import Tensor

from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.calibration.quality import QualityReport
from normtweak_core.calibration.sets import CalibrationSet
from normtweak_core.effort import Effort
from normtweak_core.errors import InputError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.float_type import FloatTypeChoice
from normtweak_core.export.payload import payload_bytes
from normtweak_core.export.record import ExportRecord
from normtweak_core.finetune.config import BlockTrainingConfig
from normtweak_core.library.progress import Progress, progress_of
from normtweak_core.library.report import Report
from normtweak_core.library.result import Quantized
from normtweak_core.library.settings import Settings, arguments_named, parse_settings
from normtweak_core.library.steps import Blocks, Work
from normtweak_core.scratch import scratch_folder
from normtweak_core.tweak.config import FinalTuneConfig, NormTweakConfig


@no_type_check  # by the tests, at run time: a wrong argument is told in a sentence below
def quantize(
    source: str | os.PathLike[str],
    *,
    calibration: Sequence[str] | Tensor | CalibrationConfig | None = None,
    samples: int | None = None,
    length: int | None = None,
    images: str | os.PathLike[str] | None = None,
    effort: Effort = "standard",
    base: str | os.PathLike[str] | None = None,
    norm_tweak: bool | NormTweakConfig | Mapping[str, Any] | None = None,
    block_training: bool | BlockTrainingConfig | Mapping[str, Any] | None = None,
    final_tune: bool | FinalTuneConfig | Mapping[str, Any] | None = None,
    export: str | ExportConfig | Mapping[str, Any] = "auto",
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
    revision: str | None = None,
    progress: bool | Progress = True,
    **quantization: Any,
) -> Quantized:
    """Return a quantized model, which can be run, saved and verified.

    Args:
        source: A folder, a hub id such as ``owner/name``, or ``reference:llama``.
        calibration: Texts, or token ids of shape (windows, tokens), that statistics are collected
            on; None: the model writes them itself; or what a recipe can say.
        samples: Windows; None: 128, of texts as many as there are up to that.
        length: Tokens per window; None: min(2048, model context).
        images: Of a model that reads images: a folder of them, or a .jsonl with ``image`` and
            ``text``; each window begins with one, and the model goes on writing.
        effort: fast, standard, best or long: what all that is not said here follows from.
        base: A checkpoint of the source by another tool, whose codes are kept.
        norm_tweak: Whether and how the norms of each block are tweaked.
        block_training: Whether and how weights, scales and norms of each block are trained.
        final_tune: Whether and how norms, and scales, are tuned at the end.
        export: The format: auto, compressed-tensors or gptq; or the whole section of a recipe.
        seed: Of everything random.
        dtype: Arithmetic of the float model.
        device: auto, cpu, cuda or cuda:N.
        revision: Of a hub id.
        progress: Whether to draw a bar, or what is called with a step, what is done, of how much.
        quantization: Fields of `QuantizationConfig`: bits, group_size, method, symmetric, ...

    Raises:
        InputError: An argument is wrong, the model is unsuitable, or the format cannot hold it.
        HessianError: A Hessian cannot be factorized.
        NonFiniteError: A weight, an activation or a loss is NaN or infinite.
    """
    began = time.monotonic()
    given, asked = _asked(calibration, samples=samples, length=length, images=images)
    trained = _said(norm_tweak=norm_tweak, block_training=block_training, final_tune=final_tune)
    model = {"source": source, "dtype": dtype, "device": device, "revision": revision}
    sections = trained | {"export": export}
    settings = parse_settings(model, asked, quantization, sections, seed, effort, base)
    with progress_of(progress) as tell, arguments_named():
        work = Work(settings, tell)
        return _exported(work, work.calibrated(given, samples, length), began)


def _exported(
    work: Work, calibrated: tuple[CalibrationSet, QualityReport], began: float
) -> Quantized:
    windows, quality = calibrated
    with contextlib.ExitStack() as held:
        out = held.enter_context(scratch_folder("quantized")) / _name(work.settings)
        record, made, choice = work.exported(windows, out)
        report = _report(work, quality, record, made, choice, time.monotonic() - began)
        return Quantized(record, report, work.source.path, work.device, held.pop_all())


def _asked(calibration: Any, **arguments: Any) -> tuple[Any, dict[str, Any]]:
    """Return texts or token ids that are given, and what is asked of a set in their place."""
    asked = _said(**arguments)
    if "images" in asked:
        asked["images"] = os.fspath(asked["images"])
    if isinstance(calibration, CalibrationConfig):
        return None, calibration.model_dump() | asked
    if "images" in asked and calibration is not None:
        raise InputError(
            "is for windows that the model writes",
            key="images",
            found="found it beside calibration",
            remedy="leave one of them out",
        )
    return calibration, asked


def _said(**arguments: Any) -> dict[str, Any]:
    """Return the arguments that are not None."""
    return {name: value for name, value in arguments.items() if value is not None}


def _report(
    work: Work,
    quality: QualityReport,
    record: ExportRecord,
    made: Blocks,
    choice: FloatTypeChoice,
    seconds: float,
) -> Report:
    return Report(
        format=record.format,
        dtype=record.dtype,
        refused=choice.refused,
        float_type_note=choice.note,
        export_sha256=record.payload_sha256,
        size_bytes=record.size_bytes,
        float_bytes=payload_bytes(work.source.path),
        bits_per_weight=record.bits_per_weight,
        calibration=quality,
        blocks=made.reports,
        final_tune=made.final_tune,
        allotment=made.allotment,
        seconds=seconds,
    )


def _name(settings: Settings) -> str:
    """Return what the export's folder is called until it is saved."""
    model = settings.model.source.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return f"{model}-{settings.quantization.in_names}"
