"""What a registration leaves in a real sqlite registry, the first time and again."""

import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from mlflow.entities import LoggedModelStatus

from normtweak_core.errors import InputError
from tasks.registry.flavor.folder import requirements
from tasks.registry.reachable import check_registry


def test_a_version_carries_metrics_lineage_alias_and_files(registry):
    registered = registry.register()

    assert (registered.name, registered.version, registered.created) == ("tiny-w4", 1, True)
    assert registered.aliases == ["candidate"]
    assert registered.model_uri == "models:/tiny-w4/1"
    client = registry.client
    version = client.get_model_version_by_alias("tiny-w4", "candidate")
    assert int(version.version) == 1
    tags = version.tags
    assert tags["source_model"] == "reference:llama"
    assert tags["bits"] == "4"
    assert tags["export_sha256"] == registry.arguments()["export_sha256"]
    assert tags["perplexity/quantized"] == "12.5"
    assert "seconds" not in tags
    assert "parent_version" not in tags

    (model,) = registry.logged_models()
    assert model.status == LoggedModelStatus.READY
    assert model.model_id == tags["logged_model_id"]
    assert {m.key: m.value for m in model.metrics} == dict(registry.metrics)
    assert model.tags["source_model"] == "reference:llama"
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "tiny-w4", "version": 1}]
    run = client.get_run(model.source_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["kl/mean"] == 0.25
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert [file.path for file in client.list_artifacts(model.source_run_id, "reports")] == [
        "reports/drift.md"
    ]

    stored = Path(model.artifact_location.removeprefix("file://"))
    assert stored.is_relative_to(registry.root / "mlartifacts")
    for file in (path for path in registry.export.rglob("*") if path.is_file()):
        kept = stored / "model" / file.relative_to(registry.export)
        assert kept.read_bytes() == file.read_bytes()
    assert (stored / "reports" / "drift.md").read_text() == "# drift"
    assert not list((registry.root / "locks").glob("*.staging"))


def test_the_registry_keeps_no_link_to_the_export(registry):
    registry.register()
    (model,) = registry.logged_models()
    stored = Path(model.artifact_location.removeprefix("file://")) / "model/config.json"
    before = stored.read_bytes()
    (registry.export / "config.json").write_text("{}")  # in place, as an editor would
    assert stored.read_bytes() == before


def test_requirements_are_exact_and_never_name_us(registry):
    registry.register()
    (model,) = registry.logged_models()
    stored = Path(model.artifact_location.removeprefix("file://"))
    lines = (stored / "requirements.txt").read_text().split()
    names = [line.partition("==")[0] for line in lines]
    assert names == ["accelerate", "mlflow", "safetensors", "torch", "transformers"]
    assert all("==" in line and "+" not in line for line in lines)
    text = (stored / "MLmodel").read_text() + (stored / "python_env.yaml").read_text()
    for ours in ("normtweak_core", "flows", "tasks"):
        assert ours not in text
    flavors = yaml.safe_load((stored / "MLmodel").read_text())["flavors"]
    assert set(flavors) == {"transformers", "python_function"}


def test_the_same_content_twice_is_the_same_version(registry):
    first, second = registry.register(), registry.register()
    assert second.model_dump() == first.model_dump() | {"created": False}
    assert len(registry.versions()) == 1
    (model,) = registry.logged_models()
    history = registry.client.get_metric_history(model.source_run_id, "kl/mean")
    assert len(history) == 1


def test_a_description_that_somebody_has_written_stays(registry):
    registry.register()
    registry.client.update_model_version("tiny-w4", "1", "For the phones.")
    registry.register()
    assert registry.client.get_model_version("tiny-w4", "1").description == "For the phones."


def test_new_content_is_a_new_version_with_its_parent(registry):
    registry.register()
    second = registry.with_seed(1).register()
    assert (second.version, second.created) == (2, True)
    tags = registry.client.get_model_version("tiny-w4", "2").tags
    assert tags["parent_version"] == "1"
    assert int(registry.client.get_model_version_by_alias("tiny-w4", "candidate").version) == 2


def test_old_content_registered_again_becomes_the_candidate_again(registry):
    registry.register()
    registry.with_seed(1).register()
    again = registry.register()
    assert (again.version, again.created, again.aliases) == (1, False, ["candidate"])
    assert int(registry.client.get_model_version_by_alias("tiny-w4", "candidate").version) == 1


def test_other_aliases_of_a_version_are_reported_and_kept(registry):
    registry.register()
    registry.client.set_registered_model_alias("tiny-w4", "champion", "1")
    assert registry.register().aliases == ["candidate", "champion"]


def test_the_parent_is_what_the_alias_pointed_to(registry):
    registry.register()
    registry.with_seed(1).register(alias="other")
    registry.with_seed(2).register()
    assert registry.client.get_model_version("tiny-w4", "3").tags["parent_version"] == "1"


def test_the_same_content_under_two_names_is_two_models(registry):
    registry.register()
    other = replace(registry, name="other.v1-w4").register()
    assert (other.name, other.version, other.created) == ("other.v1-w4", 1, True)
    assert len(registry.logged_models()) == 2


def test_files_the_registry_has_lost_are_stored_again_in_the_same_version(registry):
    registry.register()
    (model,) = registry.logged_models()
    stored = Path(model.artifact_location.removeprefix("file://")) / "model/model.safetensors"
    stored.write_bytes(stored.read_bytes()[:100])
    again = registry.register()
    assert (again.version, again.created) == (1, False)
    assert stored.read_bytes() == (registry.export / "model.safetensors").read_bytes()
    assert len(registry.logged_models()) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_byte_altered_in_the_store_is_noticed_and_mended(registry, name):
    registry.register()
    (model,) = registry.logged_models()
    stored = Path(model.artifact_location.removeprefix("file://")) / "model" / name
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 0x10
    stored.write_bytes(bytes(data))
    again = registry.register()
    assert (again.version, again.created) == (1, False)
    assert stored.read_bytes() == (registry.export / name).read_bytes()
    (model,) = registry.logged_models()
    assert registry.client.get_run(model.source_run_id).info.status == "FINISHED"
    assert len(registry.client.get_metric_history(model.source_run_id, "kl/mean")) == 1


def test_the_reports_an_export_keeps_of_other_recipes_are_not_registered(registry):
    other = registry.export / "reports" / "0123456789ab"
    other.mkdir(parents=True)
    (other / "summary.md").write_text("# another recipe")
    registry.register()
    (model,) = registry.logged_models()
    stored = Path(model.artifact_location.removeprefix("file://"))
    assert not (stored / "model" / "reports").exists()
    assert [path.name for path in (stored / "reports").iterdir()] == ["drift.md"]


def test_a_version_whose_logged_model_was_deleted_is_not_reused(registry):
    registry.register()
    (model,) = registry.logged_models()
    registry.client.delete_logged_model(model.model_id)
    again = registry.register()
    assert (again.version, again.created) == (2, True)
    assert [m.status for m in registry.logged_models()] == [LoggedModelStatus.READY]


def test_two_registrations_at_once_are_one_version(registry):
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: registry.register(), range(2)))
    assert sorted(registered.created for registered in both) == [False, True]
    assert {registered.version for registered in both} == {1}
    assert len(registry.logged_models()) == 1


def test_registering_imports_no_torch(registry):
    arguments = {k: str(v) for k, v in registry.arguments(reports=[]).items() if k.endswith("dir")}
    values = registry.arguments(reports=[], artifact_root=None, export_dir=None, lock_dir=None)
    code = f"""
import sys
from pathlib import Path
values = {values!r}
values |= {{k: Path(v) for k, v in {arguments!r}.items()}}
values["artifact_root"] = Path({str(registry.root / "mlartifacts")!r})
from tasks.registry.versions import register_export
assert register_export(**values).created
assert not {{"torch", "transformers"}} & set(sys.modules), "heavy import"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_changed_export_is_refused_and_leaves_no_version(registry):
    wanted = registry.arguments()["export_sha256"]
    (registry.export / "config.json").write_text(
        (registry.export / "config.json").read_text() + "\n"
    )
    with pytest.raises(InputError, match=f"verified, with hash {wanted}, found "):
        registry.register(export_sha256=wanted)
    assert registry.versions() == []
    (model,) = registry.logged_models()
    assert model.status == LoggedModelStatus.PENDING
    assert registry.client.get_run(model.source_run_id).info.status == "FAILED"


@pytest.mark.parametrize("name", ["a/b", "a:b", "", "it's", "-a"])
def test_a_name_the_registry_cannot_hold_is_refused(registry, name):
    with pytest.raises(InputError, match=r"^name must be letters, .* choose another"):
        registry.register(name=name)


@pytest.mark.parametrize("alias", ["latest", "v3", "a b", ""])
def test_a_reserved_alias_is_refused(registry, alias):
    with pytest.raises(InputError, match=r"^registry\.alias must be .* choose another"):
        registry.register(alias=alias)


def test_an_incomplete_export_is_refused(registry):
    (registry.export / "model.safetensors").unlink()
    (registry.export / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="lacks weights, a tokenizer"):
        registry.register()


def test_an_export_without_an_architecture_is_refused(registry):
    (registry.export / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.json of an export must name its architecture"):
        registry.register()


def test_reports_of_one_name_are_refused(registry):
    (registry.root / "x").mkdir()
    for folder in (registry.root, registry.root / "x"):
        (folder / "same.md").write_text("")
    with pytest.raises(InputError, match=r"found \['same.md', 'same.md'\]"):
        registry.register(reports=[registry.root / "same.md", registry.root / "x/same.md"])


def test_a_deleted_experiment_is_refused_with_the_way_back(registry):
    registry.register()
    experiment = registry.client.get_experiment_by_name("normtweak")
    registry.client.delete_experiment(experiment.experiment_id)
    with pytest.raises(InputError, match=f"--experiment-id {experiment.experiment_id}"):
        registry.register()


def test_a_server_that_does_not_answer_is_named_within_seconds(registry):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses connections
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(InputError, match=rf"that answers; {uri} does not \(Connection refused"):
            registry.register(tracking_uri=uri)
    assert time.monotonic() - started < 6


def test_a_sqlite_file_needs_its_folder(tmp_path):
    with pytest.raises(InputError, match=r"must name a file in an existing folder; .*nowhere of"):
        check_registry(f"sqlite:///{tmp_path / 'nowhere' / 'mlflow.db'}")
    check_registry(f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_a_gptq_reader_brings_the_torch_it_wants():
    lines = requirements({"quantization_config": {"quant_method": "gptq"}})
    names = [line.partition("==")[0] for line in lines]
    # The whole of mlflow wants an older pyarrow than gptqmodel: no installer could satisfy both.
    assert {"gptqmodel", "optimum", "transformers", "mlflow-skinny", "pandas"} < set(names)
    assert {"torch", "mlflow"}.isdisjoint(names)
