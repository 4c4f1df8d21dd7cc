"""No option of evaluate and compare is without effect: each changes the numbers that come out."""

import json
from pathlib import Path

import pytest

from flows.recipes.evaluation import EvaluationRequest
from normtweak_core.errors import InputError
from normtweak_core.settings import known_keys
from tasks.engine.progress import Progress
from tests.flows.stage_bodies import Bodies
from tests.flows.stage_keys import TASK_ITEMS, changed, write_other_items
from tests.sampled import sampled
from tests.tiny_exports import save_tiny_model, tiny_config

# Another value of each leaf, and what stands beside it before and after.
OTHER = {
    "models": (["{0}/other-model"], {}),
    "against": ("{0}/other-model", {}),
    "dtype": ("bfloat16", {}),
    "evaluation.perplexity.path": ("{0}/other.txt", {}),
    "evaluation.perplexity.length": (16, {}),
    "evaluation.perplexity.max_tokens": (64, {}),
    "evaluation.tasks": (["piqa", "boolq"], {}),
    "evaluation.data": ("{0}/tasks", {"evaluation.max_items": None}),
    "evaluation.max_items": (3, {}),
}
ELSEWHERE = {"device"}  # the last test
PAIRED = {"models": ["{0}/model", "{0}/third-model"]}
OF_COMPARE = OTHER | {"models": (["{0}/model", "{0}/other-model"], {})}
del OF_COMPARE["against"]  # the first of the models


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("requests")
    for seed, name in enumerate(("model", "other-model", "third-model")):
        save_tiny_model(folder / name, tiny_config("llama", max_position_embeddings=256), seed=seed)
        settings = (
            folder / name / "tokenizer_config.json"
        )  # lm-eval begins a text with such a token
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token": "!"}))
    (folder / "text.txt").write_text("A text to look at what a model makes of it. " * 6)
    (folder / "other.txt").write_text("Another one, of other letters, to look at. " * 6)
    write_other_items(folder)
    return folder


@pytest.fixture(scope="module")
def stored():
    return {}


def filled(project: Path, value):
    if isinstance(value, list):
        return [filled(project, one) for one in value]
    return value.format(project) if isinstance(value, str) else value


def request_of(project: Path, changes: dict) -> EvaluationRequest:
    values = {
        "models": ["{0}/model"],
        "device": "cpu",
        "evaluation": {
            "perplexity": {"path": "{0}/text.txt", "length": 32},
            "tasks": ["piqa"],
            "data": str(TASK_ITEMS),
            "max_items": 2,
        },
    }
    values["evaluation"]["perplexity"]["path"] = filled(project, "{0}/text.txt")
    values["models"] = filled(project, values["models"])
    for key, value in changes.items():
        values = changed(values, key, filled(project, value))
    return EvaluationRequest.parse(values)


def quiet(work):
    work.progress = Progress(terminal=False)
    return work


def evaluated(request: EvaluationRequest, stored: dict) -> dict:
    """Return the numbers of an evaluation, and how many items each task has of them."""
    from flows.evaluate import measure_model
    from flows.pipeline.measuring import measuring, opened

    addresses = [request.models[0], *([request.against] if request.against else [])]
    with opened(addresses, request) as models:
        measured = measure_model(quiet(measuring(models, request)), Bodies(stored))
    counts = {task: one.num_items for task, one in measured.scores.items()}
    return measured.metrics | counts


def compared(request: EvaluationRequest, stored: dict) -> list:
    """Return the numbers of all models and pairs of a comparison, without their names."""
    from flows.compare import compare_models
    from flows.pipeline.measuring import measuring, opened

    with opened(request.models, request) as models:
        work = quiet(measuring(models, request))
        result = compare_models(work, request, Bodies(stored))
    items = [task["items"] for task in result["settings"]["tasks"].values()]
    return [one["metrics"] for one in [*result["models"], *result["pairs"]]] + items


def test_every_leaf_of_a_request_has_a_case():
    assert set(known_keys(EvaluationRequest)) == {*OTHER, *ELSEWHERE}
    assert {*OTHER} - {*OF_COMPARE} == {"against"}


@pytest.mark.parametrize("key", OTHER)
def test_a_leaf_changes_what_evaluate_finds(key, project, stored, engine_environment):
    value, beside = OTHER[key]
    before = evaluated(request_of(project, beside), stored)
    assert evaluated(request_of(project, beside | {key: value}), stored) != before


@pytest.mark.parametrize("key", sampled(OF_COMPARE))  # by what evaluates
def test_a_leaf_changes_what_compare_finds(key, project, stored, engine_environment):
    value, beside = OF_COMPARE[key]
    before = compared(request_of(project, PAIRED | beside), stored)
    assert compared(request_of(project, PAIRED | beside | {key: value}), stored) != before


def test_the_device_decides_where_a_model_is_measured(project):
    from flows.pipeline.measuring import opened

    request = request_of(project, {})
    with opened(request.models, request) as (model,):
        assert model.subject.device == "cpu"
    request = request_of(project, {"device": "cuda:99"})
    with (
        pytest.raises(InputError, match=r"found cuda:99, and torch sees \d+ CUDA devices"),
        opened(request.models, request),
    ):
        pass
