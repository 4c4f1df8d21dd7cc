"""Finished models wait for a registry that does not take them: none is lost, none stands twice."""

import math
import shutil
import socket
from dataclasses import replace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from flows.cli import parse
from normtweak_core.errors import InputError
from normtweak_core.export.payload import payload_sha256
from tasks.engine.addresses import without_password
from tasks.engine.cleaning import clean
from tasks.engine.environment import FOLDERS
from tasks.engine.locks import exclusive
from tasks.registry import waiting
from tasks.registry.flavor.run_record import RunRecord
from tasks.registry.promotion import Verdict
from tasks.registry.waiting import NotRegisteredError, Waiting
from tasks.server.cancelling import RunCancelled


def a_model(registry, /, **changes) -> Waiting:
    root = registry.root
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "exports" / "report.md").write_text("# Report\n")
    if not (root / "exports" / "tiny").exists():
        shutil.copytree(registry.export, root / "exports" / "tiny")
    values = {
        "name": registry.name,
        "alias": registry.alias,
        "export": "exports/tiny",
        "export_sha256": payload_sha256(registry.export),
        "metrics": {"perplexity/quantized": 12.5, "kl/mean": 0.25},
        "tags": {"recipe": "tiny"},
        "reports": ["exports/report.md"],
        "verdict": Verdict(promote_to="champion"),
        "record": RunRecord(params={"bits": "4"}, series={"drift/tweaked": {0: 0.5, 1: 0.25}}),
        "registry": registry.uri,
    }
    return Waiting(**values | changes)


def nothing_there() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_what_is_written_is_read_again(registry):
    model = a_model(registry, metrics={"kl/mean": math.inf, "seconds": 3.25})
    place = model.place(registry.root)
    place.parent.mkdir()
    place.write_text(model.model_dump_json())
    assert waiting.all_waiting(registry.root) == [model]


def test_a_model_waits_until_there_is_a_version_of_it(registry):
    model, address = a_model(registry), nothing_there()
    with pytest.raises(NotRegisteredError) as failed:
        waiting.register(registry.root, model, address)
    assert failed.value.may_pass
    assert failed.value.summary == (
        "the model is finished and not registered (MLFLOW_TRACKING_URI must be the address of an "
        f"MLflow server that answers; {address} does not (Connection refused): start that server, "
        "correct the address, or unset MLFLOW_TRACKING_URI, and versions are registered under "
        f"NORMTWEAK_HOME); it waits under {registry.root}: `normtweak register --pending` "
        "registers it, as does the next run"
    )
    assert waiting.all_waiting(registry.root) == [model]

    made = waiting.register(registry.root, model, registry.uri)
    assert (made.version, made.created, made.aliases) == (1, True, ["candidate", "champion"])
    version = registry.client.get_model_version(registry.name, "1")
    assert version.tags["recipe"] == "tiny"
    run = registry.client.get_run(version.run_id)
    assert run.data.params["bits"] == "4"
    points = registry.client.get_metric_history(run.info.run_id, "drift/tweaked")
    assert [(point.step, point.value) for point in points] == [(0, 0.5), (1, 0.25)]
    assert waiting.all_waiting(registry.root) == []
    again = waiting.register(registry.root, model, registry.uri)
    assert (again.version, again.created) == (1, False)


def test_what_a_registry_can_never_take_waits_and_is_not_tried_again(registry, monkeypatch):
    def refuse(*_):
        raise MlflowException("no such place", error_code=INVALID_PARAMETER_VALUE)

    monkeypatch.setattr("tasks.registry.versions.register_export", refuse)
    model = a_model(registry)
    with pytest.raises(NotRegisteredError, match=r"no such place \(MlflowException\)") as failed:
        waiting.register(registry.root, model, registry.uri)
    assert not failed.value.may_pass
    assert waiting.all_waiting(registry.root) == [model]


def test_of_a_cancelled_run_nothing_waits(registry, monkeypatch):
    def cancelled(*_):
        raise RunCancelled

    monkeypatch.setattr("tasks.registry.versions.register_export", cancelled)
    with pytest.raises(RunCancelled):
        waiting.register(registry.root, a_model(registry), registry.uri)
    assert waiting.all_waiting(registry.root) == []


def test_a_full_disk_is_told_as_such_and_the_model_waits(registry, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tasks.registry.versions.register_export", full)
    with pytest.raises(OSError, match="No space left"):
        waiting.register(registry.root, a_model(registry), registry.uri)
    assert len(waiting.all_waiting(registry.root)) == 1


def keep(registry, model: Waiting) -> None:
    with pytest.raises(NotRegisteredError):
        waiting.register(registry.root, model, nothing_there())


def test_the_next_run_registers_what_waits_for_its_registry(registry):
    own = a_model(registry)
    keep(registry, own)
    other = a_model(registry, name="of-another", registry=nothing_there())
    keep(registry, other)
    (made,) = waiting.register_others(registry.root, registry.uri)
    assert made.model_uri == f"models:/{registry.name}/1"
    assert waiting.all_waiting(registry.root) == [other]


def test_what_another_run_registers_at_this_moment_is_left_to_it(registry):
    model = a_model(registry)
    keep(registry, model)
    with exclusive(model.lock(registry.root)):
        assert waiting.all_waiting(registry.root) == []
        assert waiting.register_others(registry.root, registry.uri) == []
    assert waiting.all_waiting(registry.root) == [model]
    (made,) = waiting.register_others(registry.root, registry.uri)
    assert made.created


def test_what_waited_longer_takes_no_alias_from_what_comes_now(registry):
    keep(registry, a_model(registry, verdict=Verdict()))
    other = registry.with_seed(7)
    shutil.copytree(other.export, registry.root / "exports" / "newer")
    newer = a_model(
        registry,
        verdict=Verdict(),
        export="exports/newer",
        export_sha256=payload_sha256(other.export),
    )
    keep(registry, newer)  # by an earlier try of the same run
    (older,) = waiting.register_others(registry.root, registry.uri, own=newer)
    made = waiting.register(registry.root, newer, registry.uri)
    assert (older.version, made.version) == (1, 2)
    aliases = registry.client.get_registered_model(registry.name).aliases
    assert {name: int(version) for name, version in aliases.items()}["candidate"] == 2


def test_no_password_is_written(registry):
    address = f"{nothing_there().replace('//', '//me:sesame@')}/x"
    model = a_model(registry, registry=without_password(address))
    with pytest.raises(NotRegisteredError) as failed:
        waiting.register(registry.root, model, address)
    assert "sesame" not in str(failed.value)
    assert "sesame" not in model.place(registry.root).read_text()


def test_a_damaged_file_is_named(registry):
    model = a_model(registry)
    keep(registry, model)
    place = model.place(registry.root)
    place.write_text(place.read_text()[:100])
    with pytest.raises(InputError, match=f"{place} must hold a model that waits"):
        waiting.all_waiting(registry.root)
    assert waiting.register_others(registry.root, registry.uri) == []


def test_all_is_not_removed_while_a_model_waits(registry):
    keep(registry, a_model(registry))
    with pytest.raises(InputError, match="found 1: `normtweak register --pending` first"):
        clean(registry.root, everything=True)
    clean(registry.root)
    assert (registry.root / "exports" / "tiny" / "config.json").is_file()


def test_the_command_registers_all_that_waits(registry, monkeypatch, capsys):
    monkeypatch.setattr(
        "flows.commands.registry._registry", lambda: (registry.uri, registry.root / "locks")
    )
    monkeypatch.setattr("flows.commands.registry.state_root", lambda: registry.root)
    keep(registry, a_model(registry))
    lost = replace(registry, name="lost")
    keep(registry, a_model(lost, export="exports/gone"))
    options = parse(["register", "--pending"])
    assert options.run(options) == 1
    told = capsys.readouterr()
    assert told.out == f"registered models:/{registry.name}/1 (candidate, champion)\n"
    assert told.err.startswith("normtweak: lost (")
    assert "exports/gone" in told.err
    for file in (registry.root / "waiting").iterdir():
        file.unlink()
    assert options.run(options) == 0
    told = capsys.readouterr()
    assert told.out == f"nothing under {registry.root} waits to be registered\n"
