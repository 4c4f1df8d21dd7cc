"""Whether what a fine-tuning starts from is there, and is what its recipe says."""

from pathlib import Path
from typing import Any

from flows.recipes.finetune import FinetuneRecipe, require_agreement
from normtweak_core.errors import InputError
from normtweak_core.finetune.source import ExportSource, read_export_source
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.source import resolve_source
from tasks.models.export_folder import export_folder
from tasks.models.job import model_fingerprint


def start_of(recipe: FinetuneRecipe, root: Path) -> dict[str, Any]:
    """Return the export that a recipe starts from, and its float model, as fields of `Ready`.

    Raises:
        InputError: The export or its float model is not there, or the recipe says otherwise.
    """
    export = read_export_source(export_folder(recipe.model.source, root))
    require_agreement(recipe, export)
    float_model = export.float_model(recipe.model, recipe.finetune.float_model)
    _require_float_model(float_model)
    return {"export": export, "float_model": float_model}


def _require_float_model(float_model: ModelConfig) -> None:
    try:
        resolve_source(float_model)
    except InputError as error:
        raise InputError(
            f"the float model that the export records must be there; {error.clause}. Set "
            "finetune.float_model to where it is now."
        ) from error


def require_same_model(export: ExportSource, folder: Path) -> None:
    """Accept the float model that an export was made from.

    Raises:
        InputError: It is another one.
    """
    found = model_fingerprint(folder).sha256
    if found != export.float_sha256:
        raise InputError(
            f"the float model must be the one that was quantized, {export.float_sha256[:12]}; "
            f"{folder} is {found[:12]}: set finetune.float_model to the right folder."
        )
