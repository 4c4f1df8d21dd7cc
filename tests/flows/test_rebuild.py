"""A registered version made again from the registry alone, on the real engine and registry."""

import hashlib
import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from flows.rebuilding.inputs import find_inputs
from flows.rebuilding.recorded import read_recorded
from flows.recipes.quantize import Recipe
from normtweak_core.model.fingerprint import fingerprint
from tasks.engine import events
from tasks.engine.events import read_events
from tasks.engine.locks import exclusive
from tests.flows.in_process import rebuild_result, run_command
from tests.flows.registered_version import (
    NAME,
    RECIPE,
    URI,
    Made,
    answer,
    new_folder,
    refused,
    registry_state,
)  # fmt: skip
from tests.tiny_exports import save_tiny_model, tiny_config

pytestmark = pytest.mark.timeout(600)

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(scope="module")
def made(tmp_path_factory, engine_environment, session_api):
    from flows.quantize import quantize

    folder = tmp_path_factory.mktemp("rebuilt")
    save_tiny_model(folder / "model", tiny_config("llama"), seed=5)
    (folder / "text.txt").write_text("A text to look at what a model makes of it. " * 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMTWEAK_HOME", str(engine_environment))
        patch.chdir(folder)  # the recipe's paths are relative
        return Made(engine_environment, folder, quantize(Recipe.parse(RECIPE)))


# What a version keeps


def test_a_version_keeps_what_a_rebuild_needs(made):
    version = made.client.get_model_version(NAME, "1")
    folder = str(new_folder(made.folder / "kept"))
    place = made.client.download_artifacts(version.run_id, "reports", folder)
    kept = {file.name: file for file in Path(place).iterdir()}
    assert {"recipe.yaml", "blocks.parquet", "made-with.json", "environment.txt"} <= kept.keys()
    assert {"calibration.safetensors", "calibration.parquet"} <= kept.keys()
    windows = hashlib.sha256(kept["calibration.safetensors"].read_bytes()).hexdigest()
    assert windows == version.tags["calibration_sha256"]
    lines = kept["environment.txt"].read_text().splitlines()
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(set(names))
    import torch

    assert f"torch=={torch.__version__}" in lines
    assert not [line for line in lines if line.startswith("normtweak")]
    facts = json.loads(kept["made-with.json"].read_text())
    assert "normtweak_core.quantization.gptq" in facts["sources"]
    assert version.tags["code_commit"] == (facts["commit"] or "none")
    text = hashlib.sha256((made.folder / "text.txt").read_bytes()).hexdigest()
    assert version.tags["calibration_data"] == text
    assert version.tags["calibration_set"] == "stored"
    assert version.tags["place.model.source"] == str(made.folder / "model")
    assert version.tags["place.calibration.path"] == str(made.folder / "text.txt")


def test_an_equal_run_keeps_the_same_bytes_and_the_same_version(made, engine, monkeypatch):
    from flows.quantize import quantize

    before = registry_state(made.client)
    monkeypatch.chdir(made.folder)
    again = quantize(Recipe.parse(RECIPE))
    assert (again["registered"]["version"], again["registered"]["created"]) == (1, False)
    assert registry_state(made.client) == before


# Rebuilds


def test_the_same_bytes_come_out_without_any_result_of_the_first_run(made, tmp_path, capsys):
    before, seen = registry_state(made.client), read_events(made.root)
    kept = sorted(path.name for path in (made.root / "results").iterdir())
    code, result = rebuild_result(made.root, f"models:/{NAME}@candidate", tmp_path / "r.json")
    assert (code, result["equal"], result["version"]) == (0, True, URI)
    assert result["export_sha256"] == made.result["export_sha256"]
    assert result["differences"] == []
    assert set(result["cached"]) == {
        "calibrate", "block 0", "block 1", "final tune", "export",
    }  # fmt: skip  # the float type is the one that was recorded
    assert not any(result["cached"].values())
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{URI}: normtweak quantize of model"
    assert shown[2].startswith("environment: as recorded (Python ")
    assert shown[-1] == (
        f"export: {made.result['export_sha256']}, as recorded: every byte is the same"
    )
    # The registry is as it was, and so is the state root, where nothing of it stays.
    assert registry_state(made.client) == before
    assert read_events(made.root) == seen
    assert sorted(path.name for path in (made.root / "results").iterdir()) == kept
    assert list((made.root / "rebuilds").iterdir()) == []


def test_what_differs_is_told_first_and_again_where_the_bytes_do(made, capsys, tmp_path):
    old = "".join(
        line if not line.startswith("torch==") else "torch==2.0.0\n"
        for line in made.report("environment.txt").splitlines(keepends=True)
    )
    facts = json.loads(made.report("made-with.json")) | {"python": "3.10.1", "commit": "0" * 40}
    uri = made.altered(
        "tiny-elsewhere", environment_txt=old.encode(), made_with_json=json.dumps(facts).encode()
    )
    code, shown, _ = answer(made, capsys, uri)
    lines = shown.splitlines()
    assert code == 0  # what is registered as made elsewhere was made here
    assert lines[2].startswith("differs: python: 3.10.1 recorded, ")
    assert lines[3].startswith(f"differs: commit: {'0' * 40} ")
    assert lines[4].startswith("differs: package torch: 2.0.0 recorded, ")
    assert lines[5].startswith("code of the core: as recorded, in ")


def test_a_recipe_that_gives_other_bytes_is_found_out(made, capsys, tmp_path):
    uri, file = made.altered_recipe("tiny-other-seed", seed=1), tmp_path / "r.json"
    code, shown, reason = answer(made, capsys, uri, "--result", str(file))
    result = json.loads(file.read_text())
    assert (code, result["equal"]) == (1, False)
    assert result["export_sha256"] != made.result["export_sha256"]
    assert result["recorded"]["export_sha256"] == made.result["export_sha256"]
    assert [one["fact"] for one in result["differences"]] == ["calibration set"]
    assert f"export: {made.result['export_sha256']} recorded, " in shown
    assert reason == (
        f"normtweak: the rebuild of {uri} is another export than the one registered; what differs "
        f"from its record: calibration set. It lies in {result['export_dir']}, until normtweak "
        "clean."
    )
    # It lies there, whole, and everything was computed in the rebuild's own state root.
    export = Path(result["export_dir"])
    home = export.parents[1]
    assert home.parent == made.root / "rebuilds"
    assert (export / "model.safetensors").is_file()
    done = [entry["event"] for entry in read_events(home)]
    assert {"calibrate", "block", "export"} <= set(done)
    # Once it has ended it is not looked at again.
    again, second = rebuild_result(made.root, uri, file)
    assert (again, second["export_sha256"]) == (1, result["export_sha256"])
    assert not any(second["cached"].values())
    shutil.rmtree(home)


class Cut(BaseException):
    """What ends a run in the middle; no `Exception`, as a Ctrl-C is none."""


def test_a_rebuild_that_was_cut_off_goes_on(made, engine, monkeypatch, tmp_path):
    record = events.record

    def until(name: str, **told) -> None:
        record(name, **told)
        if name == "export":
            raise Cut

    monkeypatch.setattr(events, "record", until)
    code = run_command(made.root, "rebuild", URI)
    assert code not in (0, 2)
    monkeypatch.setattr(events, "record", record)
    code, result = rebuild_result(made.root, URI, tmp_path / "r.json")
    assert (code, result["equal"]) == (0, True)
    assert result["cached"]["block 1"]
    assert not result["cached"]["export"]


def test_two_rebuilds_of_a_version_at_once_do_not_mix(made, capsys):
    with ExitStack() as stack:
        code = run_command(made.root, "rebuild", URI, "--set", "model.source=/absent")
        assert code == 2
        (lock,) = (made.root / "locks").glob(f"rebuild-{NAME}-1-*.lock")
        stack.enter_context(exclusive(lock))
        code, _, reason = answer(made, capsys, URI)
    assert code == 1
    assert f"the rebuild of {URI}: needed, but process {os.getpid()} held it" in reason


# Mistakes


def test_a_version_that_is_not_there(made, capsys):
    for uri in (f"models:/{NAME}/99", "models:/nothing-of-this-name/1", f"models:/{NAME}@nobody"):
        assert refused(made, capsys, uri) == (
            f"{uri} must be in the registry; it is not: look with `normtweak ui`."
        )


def test_a_version_that_something_else_has_registered(made, capsys):
    made.client.create_registered_model("foreign")
    made.client.create_model_version("foreign", source=str(made.folder), await_creation_for=0)
    assert refused(made, capsys, "models:/foreign/1") == (
        "models:/foreign/1 must have been registered by normtweak; it has no tag export_sha256: "
        "something else has registered it; look with `normtweak ui`."
    )


def test_a_record_that_is_not_whole(made, capsys):
    kept = "carry out its recipe again, which stores"
    uri = made.altered("tiny-untold", {"calibration_data": None})
    assert refused(made, capsys, uri) == (
        f"{uri} must have the tag calibration_data to be rebuilt; it has none: carry out its "
        "recipe again, which sets it."
    )
    uri = made.altered("tiny-environmentless", environment_txt=None)
    reason = refused(made, capsys, uri)
    assert reason.startswith("a version must have made-with.json and environment.txt among its")
    assert reason.endswith(f"No such file or directory: '{_end(reason)}'): {kept} them.")
    uri = made.altered("tiny-recipeless", recipe_yaml=None)
    reason = refused(made, capsys, uri)
    assert reason.startswith(f"{uri} must have its recipe.yaml in the registry; it cannot be read")
    assert reason.endswith(f"{kept} it.")
    uri = made.altered("tiny-other-recipe", {"recipe_sha256": "0" * 64})
    found = made.client.get_model_version(NAME, "1").tags["recipe_sha256"]
    assert refused(made, capsys, uri) == (
        f"{uri} must have the recipe it was registered with, with hash {'0' * 64}; its "
        f"recipe.yaml has {found}: {kept} it."
    )
    uri = made.altered("tiny-reportless")
    run = made.client.get_run(made.client.get_model_version("tiny-reportless", "1").run_id)
    shutil.rmtree(Path(run.info.artifact_uri.removeprefix("file://")) / "reports")
    assert refused(made, capsys, uri) == (
        f"{uri} must have its reports in the registry; they are gone: {kept} them."
    )
    uri = made.altered_recipe("tiny-of-the-future", quantization={"flavour": "new"})
    reason = refused(made, capsys, uri)
    assert reason.startswith(f"the recipe of {uri} is none for this version of the code: ")
    assert "quantization.flavour" in reason


def _end(reason: str) -> str:
    return reason.split("directory: '")[1].split("'")[0]


def test_a_model_that_is_gone_or_another_one(made, capsys):
    tags = made.client.get_model_version(NAME, "1").tags
    told = "was made from the model model with hash " + tags["source_sha256"]
    give = "Give the place of that model with --set model.source=FOLDER."
    absent = str(made.folder / "absent")
    uri = made.altered("tiny-model-gone", {"place.model.source": absent})
    assert refused(made, capsys, uri) == (
        f"{uri} {told}, then at {absent}; it is not to be had: model.source must be a folder, a "
        "hub id such as owner/name, or reference:llama | reference:neox; no folder is called "
        f"'{absent}': check the path. {give}"
    )
    other = save_tiny_model(made.folder / "other", tiny_config("llama"), seed=6)
    uri = made.altered("tiny-model-changed", {"place.model.source": str(other)})
    found = fingerprint(other).sha256
    assert refused(made, capsys, uri) == f"{uri} {told}; {other} has {found}. {give}"
    words = shutil.copytree(made.folder / "model", made.folder / "words")
    settings = json.loads((words / "tokenizer_config.json").read_text()) | {"pad_token": "!"}
    (words / "tokenizer_config.json").write_text(json.dumps(settings))
    reason = refused(made, capsys, URI, "--set", f"model.source={words}")
    assert reason.startswith(
        f"{URI} was made with tokenizer files with hash {tags['source_tokenizer_sha256']}; those "
        f"of {words} have "
    )
    assert reason.endswith(f". {give}")


def test_a_text_that_is_gone_or_another_one(made, capsys):
    text = hashlib.sha256((made.folder / "text.txt").read_bytes()).hexdigest()
    told = f"was made with a text with hash {text}"
    give = "give the place of that text with --set calibration.path=PATH."
    absent = str(made.folder / "absent.txt")
    uri = made.altered("tiny-text-gone", {"place.calibration.path": absent})
    assert refused(made, capsys, uri) == f"{uri} {told}; {absent} does not exist: {give}"
    (made.folder / "other.txt").write_text("Another text.")
    found = hashlib.sha256(b"Another text.").hexdigest()
    other = str(made.folder / "other.txt")
    assert refused(made, capsys, URI, "--set", f"calibration.path={other}") == (
        f"{URI} {told}; {other} has {found}: {give}"
    )


def test_what_was_moved_is_found_where_the_user_says(made, capsys, tmp_path):
    absent = {"place.model.source": "/absent", "place.calibration.path": "/absent.txt"}
    uri = made.altered("tiny-moved", absent)
    model = shutil.copytree(made.folder / "model", tmp_path / "moved")
    text = shutil.copy(made.folder / "text.txt", tmp_path / "moved.txt")
    places = ["--set", f"model.source={model}", "--set", f"calibration.path={text}"]
    code, shown, _ = answer(made, capsys, uri, *places)
    assert code == 0
    assert shown.splitlines()[-1].endswith("as recorded: every byte is the same")
    reason = refused(made, capsys, URI, "--set", "quantization.bits=3")
    assert reason == (
        "--set of a rebuild says where something lies now, by one of model.source, "
        "calibration.path, calibration.images; found 'quantization.bits=3': what else is changed "
        "makes another export."
    )


# The hub, as far as its cache goes


@pytest.fixture
def hub_cache(made, tmp_path, monkeypatch):
    """A cache that holds the model as org/name at one commit, with no hub in reach."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshots = tmp_path / "models--org--name" / "snapshots"
    return shutil.copytree(made.folder / "model", snapshots / COMMIT)


def test_a_hub_model_is_read_at_the_recorded_commit(made, hub_cache, capsys, monkeypatch):
    tags = {"source_model": "org/name", "source_revision": COMMIT, "place.model.source": ""}
    uri = made.altered_recipe("tiny-hub", tags, model={"source": "org/name"})
    code, shown, _ = answer(made, capsys, uri)
    assert code == 0
    assert shown.splitlines()[0] == f"{uri}: normtweak quantize of org/name"
    other = "c0ffee" + COMMIT[6:]
    uri = made.altered_recipe(
        "tiny-hub-gone", tags | {"source_revision": other}, model={"source": "org/name"}
    )
    source = made.client.get_model_version(NAME, "1").tags["source_sha256"]
    assert refused(made, capsys, uri) == (
        f"{uri} was made from the model org/name with hash {source}; it is not to be had: the hub "
        f"model org/name at revision {other} must be in the local cache or the hub within reach; "
        "neither is the case, and no folder has that name. Connect once, or give a folder. Give "
        "the place of that model with --set model.source=FOLDER."
    )


def test_a_hub_data_set_is_read_at_the_recorded_commit(made):
    data = {"source": "dataset", "path": "org/data:part"}
    tags = {"calibration_data": f"org/data:part@{COMMIT}", "place.calibration.path": ""}
    uri = made.altered_recipe("tiny-hub-data", tags, calibration=data)
    recorded = read_recorded(made.client, uri, made.folder / "recorded")
    inputs = find_inputs(recorded, [], made.client, made.folder / "parent")
    assert inputs.revisions == {"org/data:part": COMMIT}
    assert inputs.job.data_revision("org/data:part") == COMMIT  # asks no hub
