"""The MLflow logged model of an export: PENDING until all of it is stored, then READY.

Its payload never changes. What a run says about it may: another evaluation, or another recipe that
leads to the same payload, brings other reports, metrics and tags. The tag ``evaluation_sha256``
names those that are stored; it is removed before they are replaced and written after them, so that
a replacement which was killed is neither taken for the old evaluation nor for the new one.
"""

import hashlib
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.models import Model
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from normtweak_core.errors import InputError
from normtweak_core.export.payload import (
    file_sha256,
    payload_files,
    payload_sha256,
    relative_name,
)
from tasks.registry.flavor.folder import attach, write_model_folder
from tasks.registry.flavor.run_record import LONGEST_VALUE, RunRecord, log_record

EVALUATION_TAG = "evaluation_sha256"
# Copied into version tags, since an open-source MLflow keeps no metrics on a version. All follow
# from the export and its evaluation, so a difference means that the evaluation has changed.
HEADLINES = (
    "perplexity/float",
    "perplexity/quantized",
    "perplexity/ratio",
    "kl/mean",
    "top1_agreement",
    "bits_per_weight",
    "size_bytes",
)
HEADLINES_OF_TASKS = ("/acc/quantized", "/acc/drop")
PER_RUN = "prefect."  # tags that differ between equal runs begin so


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
    record: RunRecord  # what its run tells of the flow

    @property
    def headlines(self) -> dict[str, str]:
        """The metrics that a version carries as tags."""
        names = [name for name in HEADLINES if name in self.metrics]
        names += [name for name in self.metrics if name.endswith(HEADLINES_OF_TASKS)]
        return {name: str(self.metrics[name]) for name in names}

    @property
    def evaluation_sha256(self) -> str:
        """Hash of what the run says about the payload; equal for equal runs."""
        facts = {
            "headlines": self.headlines,
            "tags": {k: v for k, v in self.tags.items() if not k.startswith(PER_RUN)},
            "reports": {report.name: file_sha256(report) for report in self.reports},
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def complete_logged_model(
    client: MlflowClient, export: Export, experiment_id: str, model: LoggedModel | None
) -> LoggedModel:
    """Return a READY logged model of this payload and evaluation, made or mended where needed.

    Args:
        client: Client of the registry.
        export: What to store.
        experiment_id: Where its run belongs.
        model: The logged model of a version found before; None: look for one left behind.

    Raises:
        InputError: The files of the export are not those its hash was taken from, or two reports
            share a name.
    """
    shutil.rmtree(export.staging, ignore_errors=True)  # left by a kill
    if model is None:
        found = client.search_logged_models(
            [experiment_id], filter_string=f"tags.registration = '{export.registration}'"
        )
        model = found[0] if found else _start(client, export, experiment_id)
    if model.tags.get(EVALUATION_TAG, export.evaluation_sha256) != export.evaluation_sha256:
        client.delete_logged_model_tag(model.model_id, EVALUATION_TAG)
    if model.status == LoggedModelStatus.READY and _holds(client, export, model):
        if client.get_run(model.source_run_id).info.status == "RUNNING":  # killed right after READY
            client.set_terminated(model.source_run_id, "FINISHED")
        if model.tags.get(EVALUATION_TAG) != export.evaluation_sha256:
            _store_evaluation(client, export, model)
        return model
    return _store(client, export, model)


def _start(client: MlflowClient, export: Export, experiment_id: str) -> LoggedModel:
    """Return a PENDING logged model with a run; a run that never got its model is used again."""
    identity = {"registration": export.registration, "export_sha256": export.sha256}
    left = client.search_runs([experiment_id], f"tags.registration = '{export.registration}'")
    run = (
        left[0]
        if left
        else client.create_run(
            experiment_id,
            start_time=export.record.start_time,
            tags=export.record.tags | identity,
            run_name=export.name,
        )
    )
    return client.create_logged_model(
        experiment_id,
        name=re.sub(r"[.]", "-", export.name),  # stricter than names of registered models
        source_run_id=run.info.run_id,
        tags={**export.tags, **identity, "registered_model": export.name},
        params={name: value[:LONGEST_VALUE] for name, value in export.record.params.items()},
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
        _record_evaluation(client, export, model)
        outputs = client.get_run(run_id).outputs
        if not (outputs and outputs.model_outputs):
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        if not _holds(client, export, model):
            raise OSError(
                "The registry must hold the whole export, found files missing or altered in "
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


def _store_evaluation(client: MlflowClient, export: Export, model: LoggedModel) -> None:
    """Replace what an earlier run said about the stored payload."""
    try:
        attach(export.reports, export.staging / "reports")
        if export.reports:
            client.log_model_artifacts(model.model_id, str(export.staging))
        _record_evaluation(client, export, model)
    finally:
        shutil.rmtree(export.staging, ignore_errors=True)


def _record_evaluation(client: MlflowClient, export: Export, model: LoggedModel) -> None:
    """Give the run the record and the reports, log the metrics on both, tag the model last."""
    log_record(client, model.source_run_id, export.record)
    if export.reports:
        client.log_artifacts(model.source_run_id, str(export.staging / "reports"), "reports")
    known = {metric.key: metric.value for metric in model.metrics or []}
    now = int(time.time() * 1000)
    changed = [
        Metric(name, float(value), now, 0, model_id=model.model_id, run_id=model.source_run_id)
        for name, value in sorted(export.metrics.items())
        if known.get(name) != float(value)
    ]
    if changed:
        client.log_batch(model.source_run_id, metrics=changed, synchronous=True)
    tags = {**export.tags, EVALUATION_TAG: export.evaluation_sha256}
    client.set_logged_model_tags(model.model_id, tags)


def _holds(client: MlflowClient, export: Export, model: LoggedModel) -> bool:
    """Return whether the whole payload is stored.

    Files on a disk of this machine are hashed. A server would have to send them all for that, so
    there every file must be listed with its full size.
    """
    top = {Path(file.path).name for file in client.list_logged_model_artifacts(model.model_id)}
    if not {"MLmodel", "model"} <= top:
        return False
    if is_local_uri(model.artifact_location, is_tracking_or_registry_uri=False):
        stored = Path(local_file_uri_to_path(model.artifact_location)) / "model"
        return payload_sha256(stored) == export.sha256
    needed = {
        f"model/{relative_name(file, export.folder)}": file.stat().st_size
        for file in payload_files(export.folder)
    }
    folders = {name.rpartition("/")[0] for name in needed}
    listed = (client.list_logged_model_artifacts(model.model_id, one) for one in sorted(folders))
    sizes = {file.path: file.file_size for files in listed for file in files}
    return needed.items() <= sizes.items()
