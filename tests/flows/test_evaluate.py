"""Evaluation and comparison of models, whoever has made them, on the real engine and registry."""

import contextlib
import itertools
import json
import os
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.recipes.evaluation import EvaluationRequest
from flows.recipes.quantize import Recipe
from flows.reports.publish import page_address
from normtweak_core.errors import InputError
from tests.engine import artifacts_of
from tests.flows.page_reader import PageReader
from tests.tiny_exports import save_tiny_model, tiny_config

pytestmark = pytest.mark.timeout(300)

ITEMS = Path(__file__).parents[1] / "data" / "tasks"
TASKS = {"tasks": ["piqa"], "data": str(ITEMS), "max_items": 4}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    save_tiny_model(folder / "model", tiny_config("llama", max_position_embeddings=256), seed=31)
    settings = folder / "model" / "tokenizer_config.json"  # lm-eval begins a text with such a token
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token": "!"}))
    (folder / "text.txt").write_text("A text to look at what a model makes of it. " * 12)
    return folder


def on_text(project, **more):
    return {"perplexity": {"path": str(project / "text.txt"), "length": 32}} | TASKS | more


def recipe_of(project, **evaluation):
    return Recipe.parse(
        {
            "name": "tiny-evaluated",
            "model": {"source": str(project / "model")},
            "calibration": {"source": "random", "samples": 8, "length": 32},
            "quantization": {"method": "rtn", "bits": 3, "propagation": {"alpha": 0.0}},
            "norm_tweak": {"enabled": False},
            "final_tune": {"enabled": False},
            "evaluation": on_text(project, **evaluation),
            "gate": {"max_accuracy_drop": {"piqa": 1.0}, "max_kl": 1e-9},
        }
    )


@pytest.fixture(scope="module")
def made(engine_environment, session_api, project):
    """The result of a run that quantizes, evaluates and registers the model."""
    from flows.quantize import quantize

    return quantize(recipe_of(project))


def asked(project, *models, **more):
    values = {"models": list(models), "evaluation": on_text(project)}
    return EvaluationRequest.parse(values | {"device": "cpu"} | more)


def test_a_registered_version_is_measured_as_its_run_measured_it(engine, project, made):
    from flows.evaluate import evaluate
    from tasks.tables.evaluation import EVALUATION

    model = str(project / "model")
    request = asked(project, "models:/tiny-evaluated/1", against=model)
    found = evaluate(request)
    own = {name: value for name, value in made["metrics"].items() if name in found["metrics"]}
    assert {"perplexity/quantized", "kl_reverse/mean", "piqa/acc/drop", "size_bytes"} <= own.keys()
    assert {name: found["metrics"][name] for name in own} == own
    # The float model's own numbers are those that the run has computed.
    float_stages = {name for name in found["cached"] if name.startswith(f"evaluate {model}")}
    assert float_stages == {f"evaluate {model}", f"evaluate {model}: piqa"}
    assert {name for name, cached in found["cached"].items() if cached} == float_stages
    table, facts, page = map(Path, found["files"])
    rows = EVALUATION.read(table).set_index("measure")
    assert rows.loc["kl/mean", "value"] == found["metrics"]["kl/mean"]
    assert rows.loc["kl/mean", "stderr"] == found["metrics"]["kl/stderr"]
    assert rows.loc["piqa/acc/drop", ["count", "unit", "task"]].tolist() == [4, "items", "piqa"]
    told = json.loads(facts.read_text())
    assert told["metrics"] == found["metrics"]
    assert (told["model"], told["against"]) == ("models:/tiny-evaluated/1", model)
    assert len(told["items"]["piqa"]["acc"]) == 4
    assert told["settings"]["tasks"]["piqa"]["items"] == 4
    reader = PageReader(page.read_text())
    (shown,) = [row for row in reader.table("measure") if row["measure"] == "kl/mean"]
    assert shown["value"] == f"{found['metrics']['kl/mean']:.6g}"
    assert "4 items of piqa, beside " in reader.words
    assert "On it: " in reader.words  # of quality against size
    assert json.loads(reader.code) == found["settings"]
    link = artifacts_of(found["flow_run_id"])["evaluation-page"]
    assert page_address(page) in link.data
    written = page.read_bytes()
    again = evaluate(request)
    assert all(again["cached"].values())
    assert again["metrics"] == found["metrics"]
    assert page.read_bytes() == written


def test_a_gate_that_fails_registers_the_version_with_its_reasons_and_no_alias(engine, made):
    uri = os.environ["MLFLOW_TRACKING_URI"]
    version = MlflowClient(uri, uri).get_model_version("tiny-evaluated", "1")
    assert version.tags["gate"] == "failed"
    assert "kl/mean must be at most 1e-09 (gate.max_kl); found" in version.tags["gate.reasons"]
    assert "piqa" not in version.tags["gate.reasons"]
    assert made["registered"]["aliases"] == []


def test_the_run_of_the_version_tells_how_it_was_made(engine, made):
    uri = os.environ["MLFLOW_TRACKING_URI"]
    client = MlflowClient(uri, uri)
    version = client.get_model_version("tiny-evaluated", "1")
    run = client.get_run(version.run_id)
    params = {"bits": "3", "method": "rtn", "samples": "8", "calibration_source": "random"}
    params |= {"model": version.tags["source_model"], "seed": "0", "symmetric": "false"}
    params |= {"format": "compressed-tensors", "quantization.propagation.alpha": "0.0"}
    assert params.items() <= run.data.params.items()
    assert run.data.params["group_size"] == version.tags["group_size"]
    assert run.data.params["dtype"] in ("float16", "bfloat16", "float32")
    assert run.data.tags["mlflow.source.name"] == "normtweak quantize"
    assert (run.info.end_time - run.info.start_time) / 1000 >= 0.9 * made["seconds"]
    assert "" not in {*version.tags.values(), *run.data.tags.values()}
    drifts = client.get_metric_history(version.run_id, "drift/quantized")
    assert {one.step: one.value for one in drifts} == {
        row["index"]: row["error_before"] for row in made["blocks"]
    }
    assert len(client.get_metric_history(version.run_id, "error/weight")) == len(made["blocks"])


def test_what_both_models_write_stands_side_by_side_with_the_version(engine, made, tmp_path):
    uri = os.environ["MLFLOW_TRACKING_URI"]
    client = MlflowClient(uri, uri)
    version = client.get_model_version("tiny-evaluated", "1")
    run = client.get_run(version.run_id)
    (shown,) = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert shown["type"] == "table"
    table = json.loads(
        Path(client.download_artifacts(version.run_id, shown["path"], str(tmp_path))).read_text()
    )
    assert table["columns"] == ["prompt", "float", "quantized"]
    assert len(table["data"]) == 3
    assert all(prompt and first for prompt, first, _ in table["data"])
    for text in (version.description, run.data.tags["mlflow.note.content"]):
        assert "| prompt | float | quantized |" in text
        assert f"flow run `{made['flow_run_id']}`" in text  # its server ends with it: no link


def test_items_that_cannot_be_scored_stop_a_run_before_its_long_work(engine, project):
    from flows.quantize import quantize
    from tasks.engine.events import read_events

    too_long = {"goal": "fill a page", "sol1": 300 * "word ", "sol2": "draw on it", "label": 0}
    items = project / "too-long" / "piqa" / "items.jsonl"
    items.parent.mkdir(parents=True)
    items.write_text(json.dumps(too_long) + "\n")
    recipe = recipe_of(project, data=str(items.parents[1])).model_copy(update={"seed": 5})
    known = len(read_events(engine))
    with pytest.raises(InputError, match="fit in the model's context of 256 tokens; one of item 0"):
        quantize(recipe)
    happened = {event["event"] for event in read_events(engine)[known:]}
    assert happened.isdisjoint({"calibrate", "block", "export", "register"})


def test_models_are_compared_in_pairs_on_the_same_tokens_and_items(engine, project, made):
    from flows.compare import compare

    models = [str(project / "model"), made["export_dir"], "models:/tiny-evaluated/1"]
    found = compare(asked(project, *models))
    assert [model["address"] for model in found["models"]] == models
    assert [(pair["first"], pair["second"]) for pair in found["pairs"]] == [
        (models[0], models[1]), (models[0], models[2]), (models[1], models[2]),
    ]  # fmt: skip
    first, second, third = (pair["metrics"] for pair in found["pairs"])
    for name in ("nll_difference/mean", "nll_difference/stderr", "kl/mean", "kl_reverse/mean",
                 "top1_agreement", "piqa/acc/drop", "piqa/acc/mcnemar_p"):  # fmt: skip
        assert first[name] == pytest.approx(made["metrics"][name], rel=1e-6, abs=1e-9), name
    assert second == first
    assert third["nll_difference/mean"] == third["piqa/acc/drop"] == 0.0
    assert third["perplexity/ratio"] == third["piqa/acc/mcnemar_p"] == 1.0
    quantized = found["models"][1]
    assert quantized["bits_per_weight"] == made["metrics"]["bits_per_weight"]
    assert quantized["size_bytes"] == made["metrics"]["size_bytes"]
    results, page = map(Path, found["files"])
    assert json.loads(results.read_text())["pairs"] == found["pairs"]
    # A page that is linked from the run, with every model and every pair in its tables.
    rows = [row for table in PageReader(page.read_text()).tables for row in table]
    names = [Path(models[0]).name, Path(models[1]).name, models[2]]
    assert set(itertools.combinations(names, 2)) <= {(row[0], row[1]) for row in rows}
    perplexity = f"{quantized['metrics']['perplexity']:.4f}"
    assert any(row[0] == names[1] and perplexity in " ".join(row) for row in rows)
    link = artifacts_of(found["flow_run_id"])["comparison-page"]
    assert page_address(page) in link.data


@contextlib.contextmanager
def run_of_others(root):
    """A run of MLflow as people start one who do not have our code; nothing global is left set."""
    import mlflow

    experiment = mlflow.get_experiment_by_name("others")
    number = (
        experiment.experiment_id
        if experiment
        else mlflow.create_experiment("others", artifact_location=(root / "others").as_uri())
    )
    with mlflow.start_run(experiment_id=number):
        yield


def test_a_version_that_others_logged_with_mlflow_is_measured_like_its_folder(engine, project):
    import mlflow
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from flows.evaluate import evaluate

    model = project / "model"
    with run_of_others(engine):
        mlflow.transformers.log_model(
            transformers_model={
                "model": AutoModelForCausalLM.from_pretrained(model),
                "tokenizer": AutoTokenizer.from_pretrained(model),
            },
            name="theirs",
            task="text-generation",
            registered_model_name="theirs",
            pip_requirements=["transformers"],
        )
    found = evaluate(asked(project, "models:/theirs/1"))
    plain = evaluate(asked(project, str(model)))
    for name in ("perplexity/float", "piqa/acc/float"):
        assert found["metrics"][name] == plain["metrics"][name]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "models:/tiny-evaluated",
            "a registered version is written models:/NAME/VERSION or models:/NAME@ALIAS, such as "
            "models:/my-model/3; found 'models:/tiny-evaluated'.",
        ),
        (
            "models:/tiny-evaluated/7",
            "models:/tiny-evaluated/7 must be in the registry; it is not: look with `normtweak "
            "ui`.",
        ),
        (
            "models:/tiny-evaluated@nobody",
            "models:/tiny-evaluated@nobody must be in the registry; it is not: look with "
            "`normtweak ui`.",
        ),
        (
            "absent.gguf",
            "a GGUF model must be a file; absent.gguf does not exist: check the path.",
        ),
    ],
)
def test_a_model_that_is_not_there_is_refused(engine, project, made, address, message):
    from tasks.models.addresses import measured_model

    with pytest.raises(InputError) as raised, measured_model(address, "float32", "cpu"):
        pass
    assert str(raised.value) == message


def test_a_version_that_holds_no_language_model_is_refused(engine):
    import mlflow

    from tasks.models.addresses import measured_model

    class Other(mlflow.pyfunc.PythonModel):
        def predict(self, model_input: list[str]) -> list[str]:
            return model_input

    with run_of_others(engine):
        mlflow.pyfunc.log_model(
            name="other",
            python_model=Other(),
            registered_model_name="other",
            pip_requirements=["mlflow"],
        )
    with (
        pytest.raises(InputError, match="models:/other/1 must hold a Hugging Face folder; there"),
        measured_model("models:/other/1", "float32", "cpu"),
    ):
        pass


def test_models_that_cut_a_text_into_other_tokens_are_not_compared(engine, project, tmp_path):
    from flows.evaluate import evaluate

    other = tmp_path / "other"
    other.mkdir()
    for file in (project / "model").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="both models must read the same tokens; the tokenizer of"):
        evaluate(asked(project, str(other), against=str(project / "model")))


def test_windows_longer_than_a_models_context_are_refused(engine, project):
    from flows.evaluate import evaluate

    values = on_text(project) | {"perplexity": {"path": str(project / "text.txt"), "length": 512}}
    request = asked(project, str(project / "model"), evaluation=values)
    message = "--length must be at most the model's context of 256 tokens; found 512: lower it"
    with pytest.raises(InputError, match=message):
        evaluate(request)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ["a", "a"]}, "each model must be named once; found a, a"),
        (
            {"evaluation": {"tasks": ["quiz"]}},
            "--tasks must be lambada_openai, hellaswag, piqa, winogrande, arc_easy, arc_challenge, "
            "openbookqa or boolq; found 'quiz'.",
        ),
        ({"evaluation": {"perplexity": {"length": 1}}}, "--length must be at least 8; found 1."),
        (
            {"evaluation": {"max_items": 5}},
            "--max-items is read by named tasks alone; found no tasks: name tasks or leave it out.",
        ),
    ],
)
def test_a_wrong_option_is_named_as_the_user_wrote_it(change, message):
    with pytest.raises(InputError) as raised:
        EvaluationRequest.parse({"models": ["a"]} | change)
    assert str(raised.value).rstrip(".") == message.rstrip(".")
