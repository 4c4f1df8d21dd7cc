"""One MLflow model version per export, however often and however interrupted it is registered.

A registration has four steps, each of which finds what an earlier attempt has left: a run, a logged
model (PENDING until its files and metrics are complete, then READY), a model version, an alias. A
killed attempt is taken up again where it stopped. A lock per model name keeps two processes of
one state folder apart; the tag ``registration`` names that folder, so that nobody takes up the
unfinished upload of another machine on a shared server. (Two machines that register the same bytes
at the same moment can therefore make two versions of them.)
"""

import hashlib
import json
import logging
import re
import uuid
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import BaseModel

from normtweak_core.errors import InputError
from normtweak_core.vision.kinds import reads_images
from tasks.engine.locks import exclusive
from tasks.registry.flavor.description import describe_version
from tasks.registry.flavor.folder import read_config
from tasks.registry.flavor.logged_model import EVALUATION_TAG, Export, complete_logged_model
from tasks.registry.flavor.run_record import RunRecord
from tasks.registry.names import Address, require_names
from tasks.registry.promotion import Verdict, name_lock, settle_aliases
from tasks.registry.reachable import check_registry
from tasks.registry.registered import registry_client
from tasks.server.cancelling import last_call, raise_if_cancelled

EXPERIMENT = "normtweak"
VERSIONS_TAG = "mlflow.modelVersions"
ALL_PASS, NOTHING_TOLD = Verdict(), RunRecord()

logger = logging.getLogger(__name__)


class Registered(BaseModel, frozen=True):
    """A version in the model registry."""

    name: str
    version: int
    aliases: list[str]
    model_uri: str  # models:/NAME/VERSION
    created: bool  # False: this content was registered before
    gate_failures: list[str] = []  # where there are any, no alias has moved
    promotion: str | None = None  # what became of it, in words; None: nothing was to be promoted


def register_export(
    export_dir: Path,
    name: str,
    export_sha256: str,
    metrics: dict[str, float],
    tags: dict[str, str],
    reports: list[Path],
    alias: str,
    tracking_uri: str,
    artifact_root: Path,
    lock_dir: Path,
    verdict: Verdict = ALL_PASS,
    record: RunRecord = NOTHING_TOLD,
) -> Registered:
    """Return the version that holds this export, made now unless this content has one already.

    A version found again gets the alias and any files it has lost. Where the export was evaluated
    anew, or another recipe has led to it, its reports, metrics and tags become those of this run.

    Args:
        export_dir: A complete Hugging Face folder.
        name: Registered model name.
        export_sha256: Hash of the export's payload; what "this content" means.
        metrics: Logged against the model; the headlines also become tags of the version.
        tags: Lineage, on the version and on the logged model.
        reports: Files stored under ``reports/`` of the model and of its run.
        alias: Moved to the version where it passes the gate.
        tracking_uri: MLflow tracking and registry URI, sqlite or http.
        artifact_root: Where a sqlite registry keeps its files; a server has its own place.
        lock_dir: Local folder of the locks, on the disk of the export to save a copy.
        verdict: Of the gate, and which alias passing it may earn.
        record: What the run of the version tells of the flow that made the export.

    Raises:
        InputError: The name, alias, export or reports cannot be registered, or no registry answers.
        RunCancelled: The run that registers was cancelled; no alias has moved.
        ServerError: Nobody can say whether it was.
    """
    raise_if_cancelled()
    require_names(name, alias, ("name", "registry.alias"))
    assert re.fullmatch(r"[0-9a-f]{64}", export_sha256), f"not a SHA-256: {export_sha256!r}"
    read_config(export_dir)
    check_registry(tracking_uri)
    client, experiment_id, writer = _opened(tracking_uri, artifact_root, lock_dir)
    with name_lock(lock_dir, name) as own:
        export = Export(
            folder=export_dir,
            name=name,
            sha256=export_sha256,
            metrics=metrics,
            tags=tags | verdict.tags,
            reports=reports,
            staging=lock_dir / f"{own}.staging",
            registration=_registration(writer, name, export_sha256),
            record=record,
        )
        version, created = _version_of(client, export, experiment_id, alias)
        last_call()
        promotion = settle_aliases(client, version, alias, verdict)
        return _told(client, version, created, verdict, promotion)


def _opened(
    tracking_uri: str, artifact_root: Path, lock_dir: Path
) -> tuple[MlflowClient, str, str]:
    """Return a client of the registry, our experiment there, and the name of this state folder."""
    # Two processes that create one new database at the same time disturb each other.
    with exclusive(lock_dir / "registry-store.lock", message="opening the registry"):
        client = registry_client(tracking_uri)
        experiment_id = _experiment(client, tracking_uri, artifact_root)
        return client, experiment_id, _writer_id(lock_dir / "registry-writer.id")


def _registration(writer: str, name: str, export_sha256: str) -> str:
    identity = f"{writer}/{name}/{export_sha256}"
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _told(
    client: MlflowClient,
    version: ModelVersion,
    created: bool,
    verdict: Verdict,
    promotion: str | None,
) -> Registered:
    number = int(version.version)  # int from sqlite, str from a server
    aliases = client.get_registered_model(version.name).aliases
    return Registered(
        name=version.name,
        version=number,
        aliases=sorted(alias for alias, to in aliases.items() if int(to) == number),
        model_uri=str(Address(version.name, str(number))),
        created=created,
        gate_failures=list(verdict.failures),
        promotion=promotion,
    )


def _version_of(
    client: MlflowClient, export: Export, experiment_id: str, alias: str
) -> tuple[ModelVersion, bool]:
    """Return the version that holds an export, whole, and whether it was made now."""
    found, model = _find_version(client, export)
    model = complete_logged_model(client, export, experiment_id, model)
    raise_if_cancelled()  # the files may have taken their time
    if found is None:
        version = _create_version(client, export, model, alias)
    else:
        version = found
        _refresh_tags(client, export, version)
    _link_back(client, model, version)
    if not version.description:  # else somebody has written one
        uri = f"models:/{export.name}/{version.version}"
        images = reads_images(read_config(export.folder))
        description = describe_version(uri, export.record.description, images)
        client.update_model_version(export.name, str(version.version), description)
    return client.get_model_version(export.name, str(version.version)), found is None


def _writer_id(path: Path) -> str:
    """Return the name of this state folder, drawn once; called under the store's lock."""
    if not path.is_file() or not path.read_text():
        path.write_text(uuid.uuid4().hex)
    return path.read_text()


def _experiment(client: MlflowClient, tracking_uri: str, artifact_root: Path) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        # With a bare database MLflow would store files relative to the working folder.
        location = None if _is_served(tracking_uri) else artifact_root.resolve().as_uri()
        try:
            return client.create_experiment(EXPERIMENT, artifact_location=location)
        except MlflowException as error:  # another machine was first
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment.lifecycle_stage != "active":
        raise InputError(
            f"The MLflow experiment {EXPERIMENT!r} must be active, found it deleted. Restore it "
            f"with: mlflow experiments restore --experiment-id {experiment.experiment_id}"
        )
    return experiment.experiment_id


def _is_served(tracking_uri: str) -> bool:
    return tracking_uri.startswith(("http://", "https://"))


def _find_version(
    client: MlflowClient, export: Export
) -> tuple[ModelVersion | None, LoggedModel | None]:
    """Return the newest version of this content whose logged model still exists, and that model."""
    found = client.search_model_versions(
        f"name = '{export.name}' and tag.export_sha256 = '{export.sha256}'"
    )
    for version in sorted(found, key=lambda version: int(version.version), reverse=True):
        try:
            return version, client.get_logged_model(version.tags["logged_model_id"])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning("version %s has lost its logged model: not reused", version.version)
    return None, None


def _create_version(
    client: MlflowClient, export: Export, model: LoggedModel, alias: str
) -> ModelVersion:
    try:
        client.create_registered_model(export.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    parent = client.get_registered_model(export.name).aliases.get(alias)
    if parent is None:
        versions = client.search_model_versions(f"name = '{export.name}'")
        parent = max((int(version.version) for version in versions), default=None)
    # A bare database looks a models:/ URI up in the store this process happens to point at, a
    # server in its own; the server in turn takes no path of its files from us.
    served = _is_served(client.tracking_uri)
    return client.create_model_version(
        export.name,
        source=f"models:/{model.model_id}" if served else model.artifact_location,
        run_id=model.source_run_id,
        tags={
            **export.tags,
            **export.headlines,
            EVALUATION_TAG: export.evaluation_sha256,
            "export_sha256": export.sha256,
            "logged_model_id": model.model_id,
            **({} if parent is None else {"parent_version": str(parent)}),
        },
        model_id=model.model_id,  # a server refuses the source without it
        await_creation_for=0,  # sqlite and MLflow's own server are ready when they answer
    )


def _refresh_tags(client: MlflowClient, export: Export, version: ModelVersion) -> None:
    """Let the version say what its logged model holds by now."""
    name, number = version.name, str(version.version)
    mark = {EVALUATION_TAG: export.evaluation_sha256}
    if mark.items() <= version.tags.items():
        return
    # The mark goes first and comes back last: a refresh that was killed halfway is done again.
    if EVALUATION_TAG in version.tags:
        client.delete_model_version_tag(name, number, EVALUATION_TAG)
    for key, value in {**export.tags, **export.headlines, **mark}.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(name, number, key, value)


def _link_back(client: MlflowClient, model: LoggedModel, version: ModelVersion) -> None:
    """Name the version on its logged model, where MLflow's pages look for it."""
    link = [{"name": version.name, "version": int(version.version)}]
    if VERSIONS_TAG not in model.tags:
        client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps(link)})
