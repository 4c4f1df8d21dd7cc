"""What can be known to be wrong with a ternary recipe before a server starts."""

from pathlib import Path

from flows.budget import FIXED_DISK, ModelShape, model_shape
from flows.preflight import (
    Ready,
    check_disk,
    check_registry_of_the_user,
    check_result_file,
    check_state_root,
    check_texts,
    checked_lengths,
    require_evaluation_text,
    require_reader_files,
)
from flows.ternary_recipe import TernaryRecipe, about_data
from normtweak_core.errors import InputError
from normtweak_core.export.checks import check_ternary_exportable
from normtweak_core.model.source import (
    check_model_folder,
    model_context,
    resolve_device,
    resolve_source,
)


def ternary_preflight(recipe: TernaryRecipe, root: Path, result: Path | None = None) -> Ready:
    """Accept a ternary recipe that this machine can carry out, in order of rising cost.

    Args:
        recipe: What is wanted.
        root: The state root; it need not exist yet.
        result: Where the result file shall go, if anywhere.

    Raises:
        InputError: A folder cannot be written, a text is missing, empty or malformed, the model is
            unsuitable, bitnet cannot hold it, or the disk is too small.
    """
    if result is not None:
        check_result_file(result)
    check_state_root(root)
    try:
        warnings = check_texts(recipe.ternary.data, recipe.evaluation.perplexity)
    except InputError as error:
        raise InputError(about_data(str(error))) from error
    check_registry_of_the_user(root)
    source = resolve_source(recipe.model)
    check_model_folder(source.path)
    require_evaluation_text(recipe.evaluation.perplexity, source)
    data, measured = recipe.ternary.data, recipe.evaluation.perplexity
    length = checked_lengths(data, measured, model_context(source.path))
    require_reader_files(source.path)
    shape = model_shape(source.path)
    check_ternary_exportable(recipe.export, shape.linears)
    disk = _disk_bytes(recipe, shape, length)
    check_disk(sum(disk.values()), root)
    resolve_device(recipe.model.device)  # last: a build of torch for GPUs is imported for it
    return Ready(source, shape, length, disk, warnings)


def _disk_bytes(recipe: TernaryRecipe, shape: ModelShape, length: int) -> dict[str, int]:
    export = shape.linear_weights // 4 + (shape.parameters - shape.linear_weights) * 4
    return {
        "data": recipe.ternary.data.samples * length * 16,
        # Weights and two moments in float32; two checkpoints, and a third while it is written.
        "checkpoints": 3 * 12 * shape.parameters,
        "trained weights": shape.parameters * 4,
        "export, and the registry's copy": 2 * export,
        "databases, logs and reports": FIXED_DISK,
    }
