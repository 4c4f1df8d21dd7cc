"""What can be known to be wrong with the recipe of a fine-tuning before a server starts."""

from dataclasses import dataclass
from pathlib import Path

from flows.checks.inputs import Ready, check_inputs, check_machine
from flows.checks.machine import FIXED_DISK, ModelShape
from flows.checks.remaining import shares_there
from flows.recipes.finetune import FinetuneRecipe, require_agreement
from normtweak_core.errors import InputError
from normtweak_core.export.formats.checks import GPTQ_READER_DONE, check_exportable
from normtweak_core.finetune.source import ExportSource, read_export_source
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.fingerprint import fingerprint
from normtweak_core.model.source import resolve_source
from tasks.engine.environment import REPOSITORY
from tasks.models.export_folder import export_folder


@dataclass(frozen=True)
class ReadyToFinetune(Ready):
    """A recipe that can be carried out here, the export it starts from and its float model."""

    export: ExportSource | None = None
    float_model: ModelConfig | None = None


def finetune_preflight(
    recipe: FinetuneRecipe, root: Path, result: Path | None = None, evaluates: bool = True
) -> ReadyToFinetune:
    """Accept a recipe that this machine can carry out, in order of rising cost.

    Args:
        recipe: What is wanted.
        root: The state root; it need not exist yet.
        result: Where the result file shall go, if anywhere.
        evaluates: Whether the text to measure on is needed.

    Raises:
        InputError: A folder cannot be written, the export or its float model is not there or not
            the right one, a text is missing, empty or malformed, or the disk is too small.
    """
    export = read_export_source(export_folder(recipe.model.source, root))
    require_agreement(recipe, export)
    float_model = export.float_model(recipe.model, recipe.finetune.float_model)
    _require_float_model(float_model)
    found = check_inputs(
        float_model,
        recipe.finetune.data,
        recipe.evaluation if evaluates else None,
        root,
        result,
        "finetune.data",
    )
    check_exportable(
        recipe.export,
        export.quantization,
        found.shape.linears,
        reader_available=(REPOSITORY / GPTQ_READER_DONE).is_file(),
    )
    _require_same_model(export, found.source.path)
    disk = _disk_bytes(recipe, found.shape, found.length)
    ready = ReadyToFinetune(**vars(found), export=export, float_model=float_model)
    return check_machine(ready, disk, recipe.model, root, shares_there(recipe, ready, root))


def _require_float_model(float_model: ModelConfig) -> None:
    try:
        resolve_source(float_model)
    except InputError as error:
        raise InputError(
            f"the float model that the export records must be there; {error.clause}. Set "
            "finetune.float_model to where it is now."
        ) from error


def _require_same_model(export: ExportSource, folder: Path) -> None:
    found = fingerprint(folder).sha256
    if found != export.float_sha256:
        raise InputError(
            f"the float model must be the one that was quantized, {export.float_sha256[:12]}; "
            f"{folder} is {found[:12]}: set finetune.float_model to the right folder."
        )


def _disk_bytes(recipe: FinetuneRecipe, shape: ModelShape, length: int) -> dict[str, int]:
    export = shape.linear_weights + (shape.parameters - shape.linear_weights) * 4
    return {
        "data": recipe.finetune.data.samples * length * 16,
        "trained blocks": shape.linear_weights * 5 if recipe.finetune.block_steps else 0,
        # Weights and two moments in float32; two checkpoints, and a third while it is written.
        "checkpoints": 3 * 15 * shape.linear_weights,
        "trained weights": shape.linear_weights * 5,
        "exports, and the registry's copy": 3 * export,
        "databases, logs and reports": FIXED_DISK,
    }
