"""The same registration through a real MLflow server over http."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow.artifacts
import pytest
from mlflow.entities import LoggedModelStatus
from prefect import flow
from prefect.runtime import flow_run

from flows.reports.publish import publish_registry_link
from normtweak_core.errors import InputError
from normtweak_core.export.payload import payload_files, payload_sha256
from tasks.models.export_folder import export_folder
from tasks.registry.names import parse_address
from tasks.registry.reachable import check_registry
from tasks.registry.registered import download_export, download_reports, find_our_version
from tests.engine import artifacts_of


@dataclass(frozen=True)
class Server:
    """A server of MLflow, and the folder of its files."""

    uri: str
    files: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_database):
    root = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, root / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(root / "files")]
    log = (root / "server.log").open("w")
    running = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        found = Server(f"http://127.0.0.1:{port}", root / "files")
        for _ in range(3000):
            try:
                check_registry(found.uri)
                break
            except InputError:
                assert running.poll() is None, (root / "server.log").read_text()
                time.sleep(0.1)
        yield found
    finally:
        os.killpg(running.pid, signal.SIGKILL)  # its workers too
        running.wait()


@pytest.fixture
def served(registry, server):
    """A registry on the server; what another test has put there has other names and content."""
    return replace(registry, uri=server.uri)


def check_linked(registered: dict, client) -> None:
    """The page of a run links where the server has the reports of the version."""

    @flow
    def linking():
        publish_registry_link("tiny", registered)
        return flow_run.id

    found = artifacts_of(linking())["tiny-registry"]
    place = (
        r"\((http://127\.0\.0\.1:\d+)/#/experiments/(\d+)/runs/([0-9a-f]{32})/artifacts/reports\)"
    )
    address, experiment, run = re.search(place, found.data).groups()
    assert address == client.tracking_uri
    assert client.get_run(run).info.experiment_id == experiment
    assert [one.path for one in client.list_artifacts(run, "reports")] == ["reports/drift.md"]


@pytest.mark.timeout(600)
def test_a_server_holds_what_sqlite_would(served, engine, monkeypatch):
    first = served.register()
    assert (first.version, first.created, first.aliases) == (1, True, ["candidate"])
    assert served.register() == first.model_copy(update={"created": False})
    second = served.with_seed(1).register()
    assert (second.version, second.created) == (2, True)

    client = served.client
    version = client.get_model_version_by_alias("tiny-w4", "candidate")
    assert int(version.version) == 2
    assert version.tags["parent_version"] == "1"
    assert version.tags["perplexity/quantized"] == "12.5"
    own = {one.tags["logged_model_id"] for one in served.versions()}
    models = [model for model in served.logged_models() if model.model_id in own]
    assert [model.status for model in models] == [LoggedModelStatus.READY] * 2
    assert {metric.key: metric.value for metric in models[0].metrics} == dict(served.metrics)
    assert client.get_run(models[0].source_run_id).info.status == "FINISHED"

    report = served.root / "another" / "drift.md"
    report.parent.mkdir()
    report.write_text("# another drift")
    anew = served.register(metrics=dict(served.metrics) | {"kl/mean": 0.5}, reports=[report])
    assert (anew.version, anew.created) == (1, False)
    first_model = client.get_model_version("tiny-w4", "1").tags["logged_model_id"]
    found = client.get_logged_model(first_model)
    assert {metric.key: metric.value for metric in found.metrics}["kl/mean"] == 0.5

    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.uri)
    check_linked(second.model_dump(), client)
    (served.root / "down").mkdir()
    folder = mlflow.artifacts.download_artifacts(
        "models:/tiny-w4/1", dst_path=str(served.root / "down")
    )
    files = [file.relative_to(served.export) for file in payload_files(served.export)]
    assert Path("additional_chat_templates/tool_use.jinja") in files
    for file in files:
        assert Path(folder, "model", file).read_bytes() == (served.export / file).read_bytes()
    with open(f"{folder}/reports/drift.md") as copy:
        assert copy.read() == "# another drift"


@pytest.mark.timeout(600)
def test_what_a_rebuild_reads_comes_from_a_server_as_well(served, tmp_path):
    lineage = ("source_sha256", "recipe_sha256", "calibration_sha256")
    told = {name: str(number) * 64 for number, name in enumerate(lineage)}
    served = replace(served.with_seed(2), name="tiny-again")
    served.register(tags=told)
    client, sha256 = served.client, payload_sha256(served.export)
    for address in ("models:/tiny-again/1", "models:/tiny-again@candidate"):
        version = find_our_version(client, parse_address(address))
        assert version.uri == "models:/tiny-again/1"
        assert told.items() <= version.tags.items()
    with pytest.raises(InputError, match=r"models:/tiny-again@nobody must be in the registry"):
        find_our_version(client, parse_address("models:/tiny-again@nobody"))
    with pytest.raises(InputError, match=r"models:/tiny-again/9 must be in the registry"):
        find_our_version(client, parse_address("models:/tiny-again/9"))
    reports = download_reports(client, version, tmp_path / "reports-of-it")
    assert (reports / "drift.md").read_text() == "# drift"
    copied = download_export(client, sha256, tmp_path / "export-of-it")
    assert payload_sha256(copied) == sha256
    assert download_export(client, "0" * 64, tmp_path / "export-of-nobody") is None


@pytest.mark.timeout(600)
def test_an_export_to_train_on_is_copied_from_a_server_once(served, server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.uri)
    monkeypatch.setenv("NORMTWEAK_HOME", str(tmp_path / "state"))
    told = dict.fromkeys(("source_sha256", "recipe_sha256", "calibration_sha256"), "1" * 64)
    served = replace(served.with_seed(3), name="tiny-trained")
    served.register(tags=told)
    source, root = "models:/tiny-trained@candidate", tmp_path / "state"
    with pytest.raises(InputError) as refused:
        export_folder(source, root, writes=False)
    assert str(refused.value) == (
        f"a plan writes nothing, so the export must be here; {source} lies in the registry "
        f"{served.uri}: give the folder of the export, or start the fine-tuning."
    )
    assert not root.exists()
    folder = export_folder(source, root)
    sha256 = payload_sha256(served.export)
    assert folder == root / "exports" / "imported" / sha256[:32]
    assert payload_sha256(folder) == sha256
    (folder / "mark").touch()
    assert (export_folder(source, root, writes=False) / "mark").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    shutil.rmtree(folder)
    model = served.versions()[0].tags["logged_model_id"]
    (place,) = server.files.rglob(model)
    shutil.rmtree(place)
    with pytest.raises(InputError, match="must have its files in the registry; they are gone: gi"):
        export_folder(source, root)
    assert list(folder.parent.iterdir()) == []
