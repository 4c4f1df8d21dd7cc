"""Training an export on, as a person meets it: recipe, mistakes, a whole run, a run that stops."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from flows.cli import main
from flows.recipes.finetune import FinetuneRecipe
from flows.recipes.quantize import Recipe
from normtweak_core.training.trainer import Trainer
from tasks.engine import events
from tasks.engine.events import read_events
from tasks.stages.training.training import segment_ends
from tests.flows.in_process import rebuild_result, run_command
from tests.tiny_exports import save_tiny_model, tiny_config

pytestmark = pytest.mark.timeout(600)
SETTINGS = {
    "block_steps": 4, "steps": 12, "batch": 2, "save_every": 2,
    "data": {"source": "random", "samples": 16, "length": 32},
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory, engine_environment, session_api):
    """A folder with a tiny model, a text, and the export of a quantization of that model."""
    from flows.quantize import quantize

    folder = tmp_path_factory.mktemp("finetune")
    save_tiny_model(folder / "model", tiny_config("llama"))
    (folder / "text.txt").write_text("A text to look at what a model makes of it. " * 12)
    recipe = {
        "name": "tiny-to-tune",
        "model": {"source": str(folder / "model")},
        "calibration": {"source": "random", "samples": 8, "length": 32},
        "quantization": {"bits": 2, "group_size": 32},
        "final_tune": {"enabled": False},
        "evaluation": {"perplexity": {"path": str(folder / "text.txt")}},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMTWEAK_HOME", str(engine_environment))
        result = quantize(Recipe.parse(recipe))
    return folder, result


def values(project, **finetune) -> dict:
    folder, result = project
    return {
        "name": "tiny-tuned",
        "model": {"source": result["export_dir"]},
        "finetune": SETTINGS | finetune,
        "evaluation": {"perplexity": {"path": str(folder / "text.txt")}},
    }


def failing(tmp_path, capsys, data: dict) -> str:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(data))
    assert main(["finetune", str(recipe)]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"bits": 3}, "quantization.bits comes from the export, where it is 2; the recipe says 3"),
        ({"group_size": None}, "group_size comes from the export, where it is 32; .* says null"),
        ({"symmetric": True}, "symmetric comes from the export, where it is false; .* says true"),
        ({"levels": "ternary"}, "levels comes from the export, where it is full; .* says ternary"),
        ({"method": "gptq"}, "quantization.method is not read by normtweak finetune"),
    ],
)
def test_what_contradicts_the_export_is_exit_code_2(
    project, tmp_path, capsys, engine, section, text
):
    told = failing(tmp_path, capsys, values(project) | {"quantization": section})
    assert re.search(text, told), told
    agreeing = values(project) | {"quantization": {"bits": 2, "group_size": 32}}
    assert isinstance(FinetuneRecipe.parse(agreeing), FinetuneRecipe)


def test_what_is_no_export_of_the_right_model_is_exit_code_2(project, tmp_path, capsys, engine):
    folder, result = project

    def told(**changes) -> str:
        return failing(tmp_path, capsys, values(project) | changes)

    assert "holds normtweak.json" in told(model={"source": str(folder / "model")})
    assert "must be the folder of an export" in told(model={"source": "/nowhere"})
    assert "export.dtype comes from the export, whose scales are float16; the recipe says" in told(
        export={"dtype": "float32"}
    )
    other = save_tiny_model(tmp_path / "other", tiny_config("llama"), seed=5)
    assert "the float model must be the one that was quantized" in told(
        finetune=SETTINGS | {"float_model": str(other)}
    )
    assert "Set finetune.float_model to where it is now" in told(
        finetune=SETTINGS | {"float_model": "/nowhere"}
    )
    manifest = json.loads((Path(result["export_dir"]) / "normtweak.json").read_text())
    bare = tmp_path / "bare"
    bare.mkdir()
    del manifest["lineage"]
    (bare / "normtweak.json").write_text(json.dumps(manifest))
    assert "has no lineage" in told(model={"source": str(bare)})
    manifest["export"]["format"] = "bitnet"
    (bare / "normtweak.json").write_text(json.dumps(manifest))
    assert "is a ternary model in the bitnet format" in told(model={"source": str(bare)})


# Runs


@pytest.fixture(scope="module")
def finished(project, engine_environment, session_api):
    from flows.finetune import finetune

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMTWEAK_HOME", str(engine_environment))
        return finetune(FinetuneRecipe.parse(values(project, lr=3e-2)))


def test_a_run_leaves_a_verified_registered_model_on_the_same_grid(project, finished):
    _, start = project
    export, reports = Path(finished["export_dir"]), Path(finished["reports_dir"])
    before = json.loads((Path(start["export_dir"]) / "normtweak.json").read_text())
    after = json.loads((export / "normtweak.json").read_text())
    assert after["export"] == before["export"]
    assert after["lineage"]["parent_export_sha256"] == start["export_sha256"]
    assert after["payload_sha256"] != before["payload_sha256"]
    assert finished["registered"]["version"] == 1
    metrics = finished["metrics"]
    assert metrics["start/kl/mean"] == start["metrics"]["kl/mean"]
    assert metrics["bits_per_weight"] == start["metrics"]["bits_per_weight"]
    assert len((reports / "training.csv").read_text().splitlines()) == SETTINGS["steps"] + 1
    assert (reports / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "## Block by block" in (reports / "summary.md").read_text()
    page = (reports / "report.html").read_text()
    assert f"{metrics['start/perplexity/quantized']:.3f}" in page
    assert f"{metrics['perplexity/quantized']:.3f}" in page
    assert [row["index"] for row in finished["blocks"]] == [0, 1]


def test_the_run_of_the_version_has_params_and_the_distances_by_block(finished, engine):
    from mlflow import MlflowClient

    uri, registered = os.environ["MLFLOW_TRACKING_URI"], finished["registered"]
    client = MlflowClient(uri, uri)
    version = client.get_model_version(registered["name"], str(registered["version"]))
    assert "" not in version.tags.values()
    params = client.get_run(version.run_id).data.params
    assert params["finetune.lr"] == "0.03"
    assert (params["method"], params["bits"]) == ("finetune", version.tags["bits"])
    for name, key in (("distance/before", "error_before"), ("distance/after", "error_after")):
        history = client.get_metric_history(version.run_id, name)
        found = {entry.step: entry.value for entry in history}
        assert found == {row["index"]: row[key] for row in finished["blocks"]}


def test_a_second_run_computes_nothing_and_an_export_of_it_can_be_trained_on(
    project, finished, engine
):
    from flows.finetune import finetune

    again = finetune(FinetuneRecipe.parse(values(project, lr=3e-2)))
    assert all(again["cached"].values())
    assert again["export_sha256"] == finished["export_sha256"]
    further = values((project[0], finished), lr=3e-2, block_steps=0, steps=2)
    deeper = finetune(FinetuneRecipe.parse(further))
    assert deeper["blocks"] == []
    assert deeper["metrics"]["start/kl/mean"] == finished["metrics"]["kl/mean"]
    assert deeper["export_sha256"] != finished["export_sha256"]


def test_a_registered_version_is_trained_on_as_its_folder_is(project, finished, engine, tmp_path):
    from flows.checks.preflight import preflight
    from flows.finetune import finetune

    recipe = values(project, lr=3e-2) | {"name": "tiny-tuned-on"}
    recipe["model"] = {"source": "models:/tiny-to-tune@candidate"}
    result = finetune(FinetuneRecipe.parse(recipe))
    assert result["export_sha256"] == finished["export_sha256"]
    assert all(result["cached"].values())  # the same content, wherever it lies
    page = (Path(result["reports_dir"]) / "report.html").read_text()
    assert "models:/tiny-to-tune@candidate (2 bits, " in page
    # Nothing was copied: the files of this machine's registry lie under the state root.
    source = preflight(FinetuneRecipe.parse(recipe), engine).export
    assert source.folder.is_relative_to(engine / "mlartifacts")
    assert not (engine / "exports" / "imported").exists()
    code, again = rebuild_result(engine, "models:/tiny-tuned-on/1", tmp_path / "r.json")
    assert (code, again["equal"]) == (0, True)


def test_a_version_that_cannot_be_trained_on_is_refused(project, tmp_path, capsys, engine):
    def told(source: str) -> str:
        return failing(tmp_path, capsys, values(project) | {"model": {"source": source}})

    assert "a registered version is written models:/NAME/VERSION or mod" in told("models:/x")
    assert "models:/tiny-to-tune/9 must be in the registry; it is not" in told(
        "models:/tiny-to-tune/9"
    )


def test_a_plan_finds_what_is_finished(project, finished, engine):
    from flows.checks.preflight import preflight
    from flows.finetune import FINETUNE

    def planned(**changes) -> dict[str, tuple[int, int]]:
        recipe = FinetuneRecipe.parse(values(project, lr=3e-2, **changes))
        ready = preflight(recipe, engine)
        stages = FINETUNE.plan(recipe, ready)
        return {stage.name: (stage.cached, stage.parts) for stage in stages}

    everything = {"dry run": (1, 1), "data": (1, 1), "float type": (1, 1), "blocks": (2, 2)}
    everything |= {"training": (10, 10), "export": (1, 1)}
    last = {"verify": (1, 1), "size check": (1, 1), "evaluate": (3, 3), "register": (0, 1)}
    assert planned() == everything | last
    longer = {"training": (0, 10), "export": (0, 1), "verify": (0, 1)}
    longer |= {"size check": (0, 1), "evaluate": (2, 3)}
    assert planned(steps=13) == everything | last | longer
    other = {"data": (0, 1), "float type": (0, 1), "blocks": (0, 2)}
    text = SETTINGS["data"] | {"samples": 24}
    assert planned(data=text) == everything | last | longer | other


def test_an_update_of_low_rank_leaves_nothing_but_codes(project, finished, engine):
    from flows.finetune import finetune

    settings = {"lora": {"rank": 4, "lr_ratio": 0.05}, "block_steps": 0, "steps": 3}
    result = finetune(FinetuneRecipe.parse(values(project, **settings)))
    assert result["metrics"]["bits_per_weight"] == finished["metrics"]["bits_per_weight"]
    assert result["export_sha256"] != finished["export_sha256"]
    names = json.loads((Path(result["export_dir"]) / "normtweak.json").read_text())["tensors"]
    assert not [name for name in names if "lora" in name]


def test_a_registered_version_is_made_again_from_its_export(project, finished, engine, tmp_path):
    uri = "models:/tiny-tuned/1"
    assert finished["registered"]["version"] == 1
    code, result = rebuild_result(engine, uri, tmp_path / "r.json")
    assert (code, result["equal"], result["differences"]) == (0, True, [])
    trained = {f"train {end}" for end in segment_ends(SETTINGS["steps"])}
    assert set(result["cached"]) == {"data", "block 0", "block 1", "export"} | trained
    assert not any(result["cached"].values())
    # The registry has the export that was trained on, should its folder be gone.
    _, start = project
    away = Path(start["export_dir"]).rename(tmp_path / "moved")
    try:
        code, result = rebuild_result(engine, uri, tmp_path / "r.json")
        assert (code, result["equal"]) == (0, True)
    finally:
        away.rename(start["export_dir"])


def test_an_export_that_nobody_has_any_more_is_told(finished, engine, tmp_path, capsys):
    from mlflow import MlflowClient

    uri = os.environ["MLFLOW_TRACKING_URI"]
    client, tag = MlflowClient(uri, uri), "parent_export_sha256"
    wanted = client.get_model_version("tiny-tuned", "1").tags[tag]
    place = client.get_model_version("tiny-tuned", "1").tags["place.model.source"]
    client.set_model_version_tag("tiny-tuned", "1", tag, "0" * 64)
    try:
        assert run_command(engine, "rebuild", "models:/tiny-tuned/1") == 2
        assert capsys.readouterr().err.strip().splitlines()[-1] == (
            f"normtweak: models:/tiny-tuned/1 was trained from the export with hash {'0' * 64}; "
            f"{place} has {wanted}, and no version of this registry holds it: give its place with "
            "--set model.source=FOLDER."
        )
        client.set_model_version_tag("tiny-tuned", "1", "place.model.source", "/absent")
        assert run_command(engine, "rebuild", "models:/tiny-tuned/1") == 2
        assert "; /absent is not there, and no version of" in capsys.readouterr().err
    finally:
        client.set_model_version_tag("tiny-tuned", "1", tag, wanted)
        client.set_model_version_tag("tiny-tuned", "1", "place.model.source", place)


class Cut(BaseException):
    """What ends a run in the middle; no `Exception`, as a Ctrl-C is none."""


def cut() -> None:
    raise Cut


def test_a_run_that_is_cut_off_goes_on_and_changes_no_byte(project, engine, monkeypatch):
    from flows.finetune import finetune

    recipe = FinetuneRecipe.parse(values(project, lr=3e-2) | {"seed": 1})
    record, begun = events.record, len(read_events(engine))

    def until_block_1(name: str, **told) -> None:
        record(name, **told)
        if name == "finetune-block" and told["block"] == 1:
            cut()

    monkeypatch.setattr(events, "record", until_block_1)
    with pytest.raises(Cut):
        finetune(recipe)
    monkeypatch.setattr(events, "record", record)
    one = Trainer._one_step
    monkeypatch.setattr(Trainer, "_one_step", lambda own: cut() if own.step == 5 else one(own))
    with pytest.raises(Cut):
        finetune(recipe)
    monkeypatch.setattr(Trainer, "_one_step", one)
    result = finetune(recipe)
    seen = read_events(engine)[begun:]
    assert [e["block"] for e in seen if e["event"] == "finetune-block"] == [0, 1, 1]
    spans = [(e["first"], e["last"]) for e in seen if e["event"] == "steps"]
    steps = [step for first, last in spans for step in range(first, last + 1)]
    assert steps == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12]  # on from the checkpoint of step 4

    for kind in ("finetune-block", "train", "export"):
        for stored in (engine / "results").glob(f"{kind}-*"):
            stored.unlink()
    undisturbed = finetune(recipe)
    assert not undisturbed["cached"]["block 0"]
    assert undisturbed["export_sha256"] == result["export_sha256"]
    assert undisturbed["registered"]["version"] == result["registered"]["version"]
