"""Where a run found what its recipe names by a path: recorded, since a path may be relative."""

from pathlib import Path
from typing import Any

from flows.recipes.kinds import FINETUNE, kind_of
from normtweak_core.calibration.config import images_of
from normtweak_core.calibration.hub_data import local_data
from normtweak_core.model.source import REFERENCE_PREFIX, ModelFolder
from normtweak_core.paths import given_path
from tasks.models.export_folder import REGISTERED

PLACE = "place."  # and the key of the recipe: tag of a version
NOTHING = "none"  # a tag that has nothing to say; no path, commit or hash is this


def place_tags(recipe: Any, source: ModelFolder) -> dict[str, str]:
    """Return the absolute path of every local file and folder that an export is made from, as tags.

    A key that names nothing local says so: an older run of the same export may have left a path.
    """
    kind = kind_of(recipe.model_dump())
    found: dict[str, Path | None] = dict.fromkeys(kind.places)
    if kind is FINETUNE and not recipe.model.source.startswith(REGISTERED):
        found["model.source"] = given_path(recipe.model.source, "model.source")
    if (base := getattr(recipe, "base", None)) is not None:
        path = given_path(base, "base")
        found["base"] = path if path.exists() else None
    if source.revision is None and not source.name.startswith(REFERENCE_PREFIX):
        found[kind.source] = source.path
    data = kind.data_of(recipe)
    if data.path is not None and local_data(data.path) is not None:
        found[f"{kind.data}.path"] = given_path(data.path, f"{kind.data}.path")
    if (images := images_of(data)) is not None:
        found[f"{kind.data}.images"] = given_path(images, f"{kind.data}.images")
    return {
        f"{PLACE}{key}": NOTHING if path is None else str(path.resolve())
        for key, path in found.items()
    }
