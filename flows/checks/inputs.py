"""What every recipe of a language model reads and needs, looked at before a server starts."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from flows.checks.given_texts import check_items, check_texts, checked_lengths
from flows.checks.known_tokens import check_tokens
from flows.checks.machine import ModelShape, model_shape
from flows.checks.services import check_services
from flows.checks.written_places import check_disk, check_result_file, check_state_root
from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.calibration.hub_data import local_data
from normtweak_core.errors import keys_called
from normtweak_core.evaluate.config import EvaluationConfig
from normtweak_core.evaluate.text import text_path
from normtweak_core.export.foreign.source import BaseSource
from normtweak_core.finetune.source import ExportSource
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.source import (
    ModelFolder,
    check_model_folder,
    model_context,
    resolve_device,
    resolve_source,
)
from normtweak_core.model.tokenizer_files import require_reader_files


@dataclass(frozen=True)
class Ready:
    """A recipe that can be carried out here, and what was found out on the way."""

    source: ModelFolder
    shape: ModelShape
    length: int  # tokens per calibration window
    disk: dict[str, int]  # bytes a run writes at most, by what they are
    warnings: list[str] = field(default_factory=list)
    is_local: bool = False  # nothing has to come from the hub
    export: ExportSource | None = None  # of a fine-tuning: what it starts from
    float_model: ModelConfig | None = None  # and the float model of that
    base: BaseSource | None = None  # of a quantization: whose codes are kept


def check_inputs(
    model: ModelConfig,
    data: CalibrationConfig,
    measured: EvaluationConfig | None,
    root: Path,
    result: Path | None,
    section: str = "calibration",
) -> Ready:
    """Accept what every recipe of a language model reads, and the places it writes to.

    Args:
        model: The float model.
        data: The text to calibrate with or to train on.
        measured: The text and the tasks to measure on; None: nothing is measured.
        root: The state root; it need not exist yet.
        result: Where the result file shall go, if anywhere.
        section: What the recipe calls ``data``.

    Raises:
        InputError: A folder cannot be written, a text is missing, empty or malformed, or the model
            is unsuitable.
    """
    if result is not None:
        check_result_file(result)
    check_state_root(root)
    text = None if measured is None else measured.perplexity
    with keys_called({"calibration": section}):
        warnings = check_texts(data, text, section)
        if measured is not None:
            check_items(measured)
        check_services(root)
        source = resolve_source(model)
        check_model_folder(source.path)
        if measured is not None:
            text_path(measured.perplexity, source)
        length = checked_lengths(data, text, model_context(source.path))
    require_reader_files(source.path)
    check_tokens(source.path, data, measured)
    is_local = only_local(data, measured, source)
    return Ready(source, model_shape(source.path), length, {}, warnings, is_local)


def check_machine(
    found: Ready,
    disk: dict[str, int],
    model: ModelConfig,
    root: Path,
    there: Callable[[], dict[str, float]],
) -> Ready:
    """Accept a machine with the room and the device that a recipe needs.

    Args:
        found: What `check_inputs` has found.
        disk: Bytes the run writes at most, by what they are.
        model: Names the device.
        root: The state root.
        there: Returns which share of each lies there already.

    Raises:
        InputError: The disk is too small, or there is no such device.
    """
    check_disk(disk, root, there)
    resolve_device(model.device)  # last: a build of torch for GPUs is imported for it
    return replace(found, disk=disk)


def only_local(
    data: CalibrationConfig, evaluation: EvaluationConfig | None, source: ModelFolder
) -> bool:
    """Tell whether nothing of a run has to come from the hub."""
    tasks_of_the_hub = evaluation is not None and evaluation.tasks and evaluation.data is None
    return (
        source.revision is None
        and not tasks_of_the_hub
        and (data.source != "dataset" or local_data(data.path) is not None)
    )
