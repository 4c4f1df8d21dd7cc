"""Whether the texts and items that a recipe names can be read, and its windows fit the model."""

from pathlib import Path

from normtweak_core.calibration.config import CalibrationConfig, images_of
from normtweak_core.calibration.documents import read_documents
from normtweak_core.calibration.length import effective_length
from normtweak_core.errors import InputError, given_by
from normtweak_core.evaluate.config import EvaluationConfig, PerplexityConfig
from normtweak_core.evaluate.tasks import read_items
from normtweak_core.evaluate.text import window_length
from normtweak_core.paths import given_path
from normtweak_core.vision.images import check_images

DATA_FILES = (".json", ".jsonl", ".parquet", ".arrow", ".csv", ".txt")


def check_texts(
    calibration: CalibrationConfig, evaluation: PerplexityConfig | None, section: str
) -> list[str]:
    """Read the texts a recipe names, and return what is doubtful about them.

    Args:
        calibration: The text to calibrate with or to train on.
        evaluation: The text to measure on; None: nothing is measured.
        section: What the recipe calls the former, for a warning.

    Raises:
        InputError: A text is missing, unreadable, empty, not UTF-8 or malformed, or an image cannot
            be read.
    """
    check_images(images_of(calibration), calibration.samples)
    files = []
    if calibration.source == "text":
        files.append(read_text(calibration.path, "calibration.path"))
    elif calibration.source == "dataset":
        _check_data_set(calibration.path)
    if evaluation is not None and evaluation.path is not None:
        files.append(read_text(evaluation.path, "evaluation.perplexity.path"))
    if len(files) == 2 and files[0].resolve() == files[1].resolve():
        return [
            f"{section}.path and evaluation.perplexity.path are the same file: the perplexity is "
            "measured on text that the quantized model was calibrated with"
        ]
    return []


def read_text(path: str, key: str) -> Path:
    """Return the path of a text that can be read.

    Raises:
        InputError: The text is missing, unreadable, empty, not UTF-8 or malformed.
    """
    file = given_path(path, key)
    with given_by(key):
        read_documents(file)
    return file


def check_items(evaluation: EvaluationConfig) -> None:
    """Read the items of named tasks that lie in files.

    Raises:
        InputError: A file is missing or empty, or a line is not an item of its task.
    """
    if evaluation.data is None:
        return
    folder = given_path(evaluation.data, "evaluation.data")
    for task in evaluation.tasks:
        read_items(folder, task)


def checked_lengths(
    calibration: CalibrationConfig, evaluation: PerplexityConfig | None, context: int | None
) -> int:
    """Return the tokens per calibration window.

    Raises:
        InputError: A window, here or of the evaluation, is longer than the model's context.
    """
    length = effective_length(calibration.length, context)
    if evaluation is not None:
        window_length(evaluation, length, context)
    return length


def _check_data_set(name: str) -> None:
    # Anything else that does not exist may be a name on the hub, which only the hub can tell.
    path = given_path(name, "calibration.path")
    looks_local = name.startswith(("/", "./", "../", "~")) or path.suffix.lower() in DATA_FILES
    if looks_local and not path.exists():
        raise InputError(
            "must be a file, a folder or a hub data set",
            key="calibration.path",
            found=f"{name} does not exist",
            remedy="check the path",
        )
