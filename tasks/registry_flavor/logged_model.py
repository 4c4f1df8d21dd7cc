"""The MLflow logged model of an export: PENDING until all of it is stored, then READY."""

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.models import Model

from normtweak_core.errors import InputError
from normtweak_core.export.payload import payload_files, payload_sha256
from tasks.registry_flavor.folder import attach, write_model_folder


@dataclass(frozen=True)
class Export:
    """What is being registered, and as what."""

    folder: Path
    name: str
    sha256: str
    metrics: dict[str, float]
    tags: dict[str, str]
    reports: list[Path]
    staging: Path  # a folder only this registration uses
    registration: str  # tag that finds the work of this very registration again


def complete_logged_model(
    client: MlflowClient, export: Export, experiment_id: str, model: LoggedModel | None
) -> LoggedModel:
    """Return a READY logged model whose files are all there, made or mended where needed.

    Args:
        client: Client of the registry.
        export: What to store.
        experiment_id: Where its run belongs.
        model: The logged model of a version found before; None: look for one left behind.

    Raises:
        InputError: The files of the export are not those its hash was taken from.
    """
    shutil.rmtree(export.staging, ignore_errors=True)  # left by a kill
    if model is None:
        found = client.search_logged_models(
            [experiment_id], filter_string=f"tags.registration = '{export.registration}'"
        )
        model = found[0] if found else _start(client, export, experiment_id)
    if model.status == LoggedModelStatus.READY and _holds(client, export, model):
        if client.get_run(model.source_run_id).info.status == "RUNNING":  # killed right after READY
            client.set_terminated(model.source_run_id, "FINISHED")
        return model
    return _store(client, export, model)


def log_metrics(client: MlflowClient, export: Export, model: LoggedModel) -> None:
    """Log the metrics against the logged model, and with it on its run."""
    now = int(time.time() * 1000)
    metrics = [
        Metric(name, float(value), now, 0, model_id=model.model_id, run_id=model.source_run_id)
        for name, value in sorted(export.metrics.items())
    ]
    client.log_batch(model.source_run_id, metrics=metrics, synchronous=True)


def store_reports(client: MlflowClient, export: Export, model: LoggedModel) -> None:
    """Put the reports of this registration in the place of those stored before."""
    try:
        attach(export.reports, export.staging / "reports")
        client.log_model_artifacts(model.model_id, str(export.staging))
        client.log_artifacts(model.source_run_id, str(export.staging / "reports"), "reports")
    finally:
        shutil.rmtree(export.staging, ignore_errors=True)


def _start(client: MlflowClient, export: Export, experiment_id: str) -> LoggedModel:
    """Return a PENDING logged model with a run; a run that never got its model is used again."""
    identity = {"registration": export.registration, "export_sha256": export.sha256}
    left = client.search_runs([experiment_id], f"tags.registration = '{export.registration}'")
    run = left[0] if left else client.create_run(experiment_id, tags=identity, run_name=export.name)
    return client.create_logged_model(
        experiment_id,
        name=re.sub(r"[.]", "-", export.name),  # stricter than names of registered models
        source_run_id=run.info.run_id,
        tags={**export.tags, **identity, "registered_model": export.name},
    )


def _store(client: MlflowClient, export: Export, model: LoggedModel) -> LoggedModel:
    """Store files and metrics over whatever an earlier attempt has left, then mark READY."""
    run_id = model.source_run_id
    client.update_run(run_id, status="RUNNING")
    record = Model(
        artifact_path=model.artifact_location,
        model_uuid=model.model_id,
        run_id=run_id,
        model_id=model.model_id,
    )
    try:
        write_model_folder(export.staging, export.folder, export.reports, record)
        found = payload_sha256(export.staging / "model")
        if found != export.sha256:
            raise InputError(
                f"The export must be the one that was verified, with hash {export.sha256}, found "
                f"{found} in {export.folder}. Export the model again."
            )
        client.log_model_artifacts(model.model_id, str(export.staging))
        if export.reports:
            client.log_artifacts(run_id, str(export.staging / "reports"), "reports")
        outputs = client.get_run(run_id).outputs
        if not (outputs and outputs.model_outputs):
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        if not model.metrics:
            log_metrics(client, export, model)
        if not _holds(client, export, model):
            raise OSError(
                "The registry must hold the whole export, found files missing or short in "
                f"{model.artifact_location}. Check its disk, then register again."
            )
        if model.status != LoggedModelStatus.READY:
            model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    finally:
        shutil.rmtree(export.staging, ignore_errors=True)
    client.set_terminated(run_id, "FINISHED")
    return model


def _holds(client: MlflowClient, export: Export, model: LoggedModel) -> bool:
    """Return whether every payload file is there at its full size."""
    top = {Path(file.path).name for file in client.list_logged_model_artifacts(model.model_id)}
    if not {"MLmodel", "model"} <= top:
        return False
    stored = client.list_logged_model_artifacts(model.model_id, "model")
    sizes = {Path(file.path).name: file.file_size for file in stored}
    needed = {file.name: file.stat().st_size for file in payload_files(export.folder)}
    return needed.items() <= sizes.items()
