"""Everything that can be known to be wrong before a server starts or a folder is made.

Nothing here imports torch (but where a GPU build of it has to count devices), Prefect or MLflow,
and nothing is written.
"""

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from flows.budget import (
    ModelShape,
    disk_bytes,
    existing_folder,
    free_bytes,
    model_shape,
    readable_bytes,
)
from flows.params import Recipe
from flows.recipe_errors import in_section, told_of
from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.calibration.documents import read_documents
from normtweak_core.calibration.length import effective_length
from normtweak_core.errors import InputError
from normtweak_core.evaluate.config import EvaluationConfig, PerplexityConfig
from normtweak_core.evaluate.tasks import read_items
from normtweak_core.export.checks import GPTQ_READER_DONE, check_exportable
from normtweak_core.model.architecture import read_config
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.foreign_code import refuse_foreign_tokenizer
from normtweak_core.model.source import (
    REFERENCE_PREFIX,
    ModelFolder,
    check_model_folder,
    model_context,
    resolve_device,
    resolve_source,
)
from tasks.environment import HOME_VARIABLE, REPOSITORY, default_variables
from tasks.registry_server import check_registry

REGISTRY_VARIABLE = "MLFLOW_TRACKING_URI"
DATA_FILES = (".json", ".jsonl", ".parquet", ".arrow", ".csv", ".txt")


@dataclass(frozen=True)
class Ready:
    """A recipe that can be carried out here, and what was found out on the way."""

    source: ModelFolder
    shape: ModelShape
    length: int  # tokens per calibration window
    disk: dict[str, int]  # bytes a run writes at most, by what they are
    warnings: list[str] = field(default_factory=list)


def preflight(
    recipe: Recipe, root: Path, result: Path | None = None, evaluates: bool = True
) -> Ready:
    """Accept a recipe that this machine can carry out, in order of rising cost.

    Args:
        recipe: What is wanted.
        root: The state root; it need not exist yet.
        result: Where the result file shall go, if anywhere.
        evaluates: Whether the text to measure on is needed.

    Raises:
        InputError: A folder cannot be written, a text is missing, empty or malformed, the model is
            unsuitable, the format cannot hold it, or the disk is too small.
    """
    measured = recipe.evaluation if evaluates else None
    found = check_inputs(recipe.model, recipe.calibration, measured, root, result)
    check_exportable(
        recipe.export,
        recipe.quantization,
        found.shape.linears,
        reader_available=(REPOSITORY / GPTQ_READER_DONE).is_file(),
    )
    return check_machine(found, disk_bytes(recipe, found.shape, found.length), recipe.model, root)


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
    with told_of(section):
        warnings = [in_section(told, section) for told in check_texts(data, text)]
        if measured is not None:
            check_items(measured)
        check_registry_of_the_user(root)
        source = resolve_source(model)
        check_model_folder(source.path)
        if measured is not None:
            require_evaluation_text(measured.perplexity, source)
        length = checked_lengths(data, text, model_context(source.path))
    require_reader_files(source.path)
    return Ready(source, model_shape(source.path), length, {}, warnings)


def check_machine(found: Ready, disk: dict[str, int], model: ModelConfig, root: Path) -> Ready:
    """Accept a machine with the room and the device that a recipe needs.

    Args:
        found: What `check_inputs` has found.
        disk: Bytes the run writes at most, by what they are.
        model: Names the device.
        root: The state root.

    Raises:
        InputError: The disk is too small, or there is no such device.
    """
    check_disk(sum(disk.values()), root)
    resolve_device(model.device)  # last: a build of torch for GPUs is imported for it
    return replace(found, disk=disk)


def check_result_file(path: Path) -> None:
    """Accept a path that a result file can be written to.

    Raises:
        InputError: It is a folder, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise InputError(f"--result must name a file; {path} is a folder: add a file name.")
    folder = path.parent
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise InputError(
            f"--result needs an existing folder; {folder} {found}: create it or choose another."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"--result needs a folder you may write to; {folder} is not one: choose another."
        )


def check_state_root(root: Path) -> None:
    """Accept a state root that exists or can be made.

    Raises:
        InputError: It is, or lies below, a file or a folder that cannot be written.
    """
    advice = f"choose a folder you may write to with {HOME_VARIABLE}."
    there = existing_folder(root)
    if not there.is_dir():
        raise InputError(
            f"All state is kept under {root}, but {there} is a file, not a folder; {advice}"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"All state is kept under {root}, which must be writable, but {there} is not; {advice}"
        )


def check_registry_of_the_user(root: Path) -> None:
    """Accept the registry that the environment names; our own is made when it is needed.

    Raises:
        InputError: It does not answer.
    """
    uri = os.environ.get(REGISTRY_VARIABLE)
    if uri not in (None, default_variables(root)[REGISTRY_VARIABLE]):
        check_registry(uri)


def check_texts(calibration: CalibrationConfig, evaluation: PerplexityConfig | None) -> list[str]:
    """Read the texts a recipe names, and return what is doubtful about them.

    Raises:
        InputError: A text is missing, unreadable, empty, not UTF-8 or malformed.
    """
    texts = {}
    if calibration.source == "text":
        texts["calibration.path"] = Path(calibration.path).expanduser()
    elif calibration.source == "dataset":
        _check_data_set(calibration.path)
    if evaluation is not None and evaluation.path is not None:
        texts["evaluation.perplexity.path"] = Path(evaluation.path).expanduser()
    for key, path in texts.items():
        try:
            read_documents(path)
        except InputError as error:
            raise InputError(f"{key}: {str(error).rstrip('.')}.") from error
    files = [path.resolve() for path in texts.values()]
    if len(files) == 2 and files[0] == files[1]:
        return [
            "calibration.path and evaluation.perplexity.path are the same file: the perplexity is "
            "measured on text that the quantized model was calibrated with"
        ]
    return []


def check_items(evaluation: EvaluationConfig) -> None:
    """Read the items of named tasks that lie in files.

    Raises:
        InputError: A file is missing or empty, or a line is not an item of its task.
    """
    if evaluation.data is None:
        return
    for task in evaluation.tasks:
        try:
            read_items(Path(evaluation.data).expanduser(), task)
        except InputError as error:
            raise InputError(f"{str(error).rstrip('.')}.") from error


def check_disk(needed: int, root: Path) -> None:
    """Accept a disk with room for what a run writes at most.

    What lies there already is not counted: which of it belongs to this recipe only the keys of its
    stages tell, and they cannot be had without Prefect.

    Raises:
        InputError: It has less.
    """
    free = free_bytes(existing_folder(root))
    if free < needed:
        raise InputError(
            f"this run may write {readable_bytes(needed)} under {root}; its disk has "
            f"{readable_bytes(free)} free: make room (`normtweak clean`), lower "
            f"calibration.samples or length, or set {HOME_VARIABLE} to a larger disk."
        )


def only_local(
    data: CalibrationConfig, evaluation: EvaluationConfig | None, source: ModelFolder
) -> bool:
    """Tell whether nothing of a run has to come from the hub."""
    tasks_of_the_hub = evaluation is not None and evaluation.tasks and evaluation.data is None
    return (
        source.revision is None
        and not tasks_of_the_hub
        and (data.source != "dataset" or Path(data.path).expanduser().exists())
    )


def _check_data_set(name: str) -> None:
    # Anything else that does not exist may be a name on the hub, which only the hub can tell.
    path = Path(name).expanduser()
    looks_local = name.startswith(("/", "./", "../", "~")) or path.suffix in DATA_FILES
    if looks_local and not path.exists():
        raise InputError(
            f"calibration.path must be a file, a folder or a hub data set; {name} does not exist: "
            "check the path."
        )


def require_reader_files(folder: Path) -> None:
    """Accept a model with all that loading it by name, and later its export, takes.

    Raises:
        InputError: A file of the tokenizer or the name of its architecture is missing or damaged,
            or the tokenizer needs code of its own.
    """
    # Other kinds of vocabularies take sentencepiece or tiktoken, which no reader of an export has.
    vocabularies = (("tokenizer.json",), ("vocab.json", "merges.txt"))
    needed = {
        "tokenizer_config.json": (folder / "tokenizer_config.json").is_file(),
        "tokenizer.json (or vocab.json and merges.txt)": any(
            all((folder / name).is_file() for name in names) for names in vocabularies
        ),
        "architectures in config.json": bool(read_config(folder).get("architectures")),
    }
    missing = [what for what, there in needed.items() if not there]
    if missing:
        raise InputError(
            f"a model folder must hold its tokenizer and name its architecture; {folder} lacks "
            f"{', '.join(missing)}: save model and tokenizer into it with save_pretrained."
        )
    for name, required in (("tokenizer_config.json", None), ("tokenizer.json", "model")):
        if (folder / name).is_file():
            _require_json_object(folder / name, required)
    refuse_foreign_tokenizer(folder)


def _require_json_object(path: Path, required: str | None) -> None:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:  # also of bytes that are no text
        found = str(error)
    else:
        if isinstance(value, dict) and (required is None or required in value):
            return
        found = f"it has no {required}" if isinstance(value, dict) else "it is something else"
    wanted = f"a JSON object with {required}" if required else "a JSON object"
    raise InputError(
        f"{path} must be {wanted}; {found}: save the tokenizer again with save_pretrained."
    )


def require_evaluation_text(config: PerplexityConfig, source: ModelFolder) -> None:
    """Accept a text to measure on: one that is named, or the one a reference model ships.

    Raises:
        InputError: There is none.
    """
    if config.path is None and not source.name.startswith(REFERENCE_PREFIX):
        raise InputError(
            "evaluation.perplexity.path is required for a model that ships no held-out text; "
            f"found none for {source.name}: give a .txt or .jsonl file."
        )


def checked_lengths(
    calibration: CalibrationConfig, evaluation: PerplexityConfig | None, context: int | None
) -> int:
    """Return the tokens per calibration window.

    Raises:
        InputError: A window, here or of the evaluation, is longer than the model's context.
    """
    length = effective_length(calibration.length, context)
    evaluated = length if evaluation is None else evaluation.length or length
    if context is not None and evaluated > context:
        raise InputError(
            f"evaluation.perplexity.length must be at most the model's context of {context} "
            f"tokens; found {evaluated}: lower it."
        )
    return length
