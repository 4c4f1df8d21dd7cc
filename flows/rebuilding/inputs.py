"""What a rebuild reads: found where the version recorded it or where the user says, and the same.

Everything here ends before a server starts and before anything is computed.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from flows.rebuilding.recorded import Recorded
from flows.recipes.base import put
from flows.recipes.file import apply_override
from flows.recipes.kinds import FINETUNE
from normtweak_core.calibration.config import images_of
from normtweak_core.errors import InputError
from normtweak_core.export.payload import payload_sha256
from normtweak_core.finetune.source import read_export_source
from normtweak_core.model.config import ModelConfig
from normtweak_core.paths import given_path
from tasks.models.given_data import data_identity
from tasks.models.job import Job, open_job
from tasks.registry.registered import download_export


@dataclass(frozen=True)
class Inputs:
    """A recipe whose paths lead to what the version was made from, and its model."""

    recipe: Any
    job: Job
    revisions: dict[str, str]  # commits of hub data sets


def find_inputs(
    recorded: Recorded, overrides: list[str], client: MlflowClient, folder: Path
) -> Inputs:
    """Return what a version was made from, each part compared with its recorded hash.

    Args:
        recorded: What the registry says about the version.
        overrides: KEY=PATH: where a model or text lies now.
        client: Client of the registry, which may hold the export that was trained on.
        folder: Where a copy of that export may be put.

    Raises:
        InputError: A model, an export or a text is not to be had, or is another one.
    """
    values = _values_with_places(recorded, overrides)
    if recorded.kind is FINETUNE:
        _find_parent(recorded, values, client, folder)
    try:
        recipe = recorded.kind.recipe.parse(values)
    except InputError as error:
        raise InputError(
            f"the recipe of {recorded.uri} is none for this version of the code: {error}"
        ) from error
    revisions = _revisions(recorded, recipe)
    job = _open_source(recorded, recipe, revisions)
    _check_data(recorded, recipe, job)
    _check_base(recorded, job)
    return Inputs(recipe, job, revisions)


def _values_with_places(recorded: Recorded, overrides: list[str]) -> dict[str, Any]:
    """Return the recipe's values, with the places where things lie, and the recorded commit."""
    values, kind = copy.deepcopy(recorded.values), recorded.kind
    has_base = values.get("base") is not None
    places = [*kind.places, *(["base"] if has_base else [])]
    for key in places:
        if (place := recorded.place(key)) is not None:
            put(values, key, place)
    if kind.source == "model.source" and (commit := recorded.tag("source_revision")):
        put(values, "model.revision", commit)
    if has_base and (commit := recorded.tag("base_revision")):
        put(values, "base", f"{recorded.tag('base')}@{commit}")
    for override in overrides:
        key = override.partition("=")[0]
        if key not in places:
            raise InputError(
                f"--set of a rebuild says where something lies now, by one of "
                f"{', '.join(places)}; found {override!r}: what else is changed makes another "
                "export."
            )
        apply_override(values, override)
        if key == "model.source":
            put(values, "model.revision", None)
    # A machine with a GPU must not take it where the version was made without.
    if recorded.made_with.device == "cpu" and values["model"]["device"] == "auto":
        put(values, "model.device", "cpu")
    return values


def _find_parent(
    recorded: Recorded, values: dict[str, Any], client: MlflowClient, folder: Path
) -> None:
    """Let `model.source` be the export that was trained on, from its place or the registry."""
    wanted = recorded.tag("parent_export_sha256")
    place = given_path(values["model"]["source"], "model.source")
    found = payload_sha256(place) if place.is_dir() else None
    if found == wanted:
        return
    if (copied := download_export(client, wanted, folder)) is not None:
        found, place = payload_sha256(copied), copied
        if found == wanted:
            put(values, "model.source", str(copied))
            return
    raise InputError(
        f"{recorded.uri} was trained from the export with hash {wanted}; {place} "
        f"{f'has {found}' if found else 'is not there'}, and no version of this registry holds it: "
        "give its place with --set model.source=FOLDER."
    )


def _revisions(recorded: Recorded, recipe: Any) -> dict[str, str]:
    """Return the commit of the hub data set that was read, if it was one."""
    data = recorded.kind.data_of(recipe)
    name, _, commit = recorded.tag("calibration_data").rpartition("@")
    return {name: commit} if name and name == data.path else {}


def _open_source(recorded: Recorded, recipe: Any, revisions: dict[str, str]) -> Job:
    """Return the job of the float model, which is the one that was recorded."""
    key, wanted = recorded.kind.source, recorded.tag("source_sha256")
    told = f"{recorded.uri} was made from the model {recorded.tag('source_model')} with hash "
    give = f"Give the place of that model with --set {key}=FOLDER."
    try:
        base = getattr(recipe, "base", None)
        job = open_job(_float_model(recorded, recipe), recipe.seed, revisions, base)
    except InputError as error:
        where = recorded.place(key)
        at = f", then at {where}" if where else ""
        raise InputError(
            f"{told}{wanted}{at}; it is not to be had: {error.clause}. {give}"
        ) from error
    if job.fingerprint.sha256 != wanted:
        raise InputError(f"{told}{wanted}; {job.folder} has {job.fingerprint.sha256}. {give}")
    wanted = recorded.tag("source_tokenizer_sha256")
    if job.tokenization_sha256 != wanted:
        raise InputError(
            f"{recorded.uri} was made with tokenizer files with hash {wanted}; those of "
            f"{job.folder} have {job.tokenization_sha256}. {give}"
        )
    return job


def _float_model(recorded: Recorded, recipe: Any) -> ModelConfig:
    if recorded.kind is not FINETUNE:
        return recipe.model
    export = read_export_source(given_path(recipe.model.source, "model.source"))
    return export.float_model(recipe.model, recipe.finetune.float_model)


def _check_base(recorded: Recorded, job: Job) -> None:
    """Accept the checkpoint whose codes were recorded."""
    if job.base is None:
        return
    if job.base_sha256 != (wanted := recorded.tag("base_sha256")):
        raise InputError(
            f"{recorded.uri} was made with the codes of {recorded.tag('base')} with hash {wanted}; "
            f"{job.base.folder} has {job.base_sha256}: give the place of that "
            "checkpoint with --set base=FOLDER."
        )


def _check_data(recorded: Recorded, recipe: Any, job: Job) -> None:
    """Accept the text or data set that was recorded."""
    data = recorded.kind.data_of(recipe)
    images = images_of(data)
    path = data.path if images is None else images
    key = f"{recorded.kind.data}.{'path' if images is None else 'images'}"
    wanted = recorded.tag("calibration_data")
    if not wanted:
        return
    what = "text" if images is None else "set of images"
    told = f"{recorded.uri} was made with a {what} with hash {wanted}"
    give = f"give the place of that {what} with --set {key}=PATH."
    if recorded.place(key) is not None and not given_path(path, key).exists():
        raise InputError(f"{told}; {path} does not exist: {give}")
    found = data_identity(job, data)
    if found != wanted:
        raise InputError(f"{told}; {path} has {found}: {give}")
