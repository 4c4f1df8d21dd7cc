"""Tokens beyond the embedding are found before the start, in whichever text a run reads."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from flows.checks import ablation
from flows.checks.preflight import preflight
from flows.recipes.ablation import AblationRecipe
from flows.recipes.evaluation import EvaluationRequest
from flows.recipes.quantize import Recipe
from flows.recipes.ternary import TernaryRecipe
from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.calibration.sets import build_calibration_set
from normtweak_core.errors import InputError
from normtweak_core.evaluate.harness import score_task
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.vocabulary import embedding_rows, most_token_ids
from tests.flows.tiny_model import (
    VOCABULARY,
    ablation_values,
    recipe_values,
    ternary_values,
    variables_of,
    write_model,
    write_project,
)

FOUND = (
    f"must hold tokens of the model alone; '<new>' has the id {VOCABULARY}, and the embedding has "
    f"{VOCABULARY} rows: call model.resize_token_embeddings(len(tokenizer)) and save the model "
    "again, or take the token out"
)


def grow(model, **settings):
    """Add a token to a tokenizer, without a row in the embedding; `settings` are its others."""
    stored = json.loads((model / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    stored["added_tokens"].append({"id": VOCABULARY, "content": "<new>"} | flags)
    (model / "tokenizer.json").write_text(json.dumps(stored))
    (model / "tokenizer_config.json").write_text(
        json.dumps({"unk_token": "w0", "tokenizer_class": "PreTrainedTokenizerFast"} | settings)
    )
    return model


@pytest.fixture
def project(tmp_path):
    write_project(tmp_path)
    grow(tmp_path / "model")
    with variables_of(tmp_path / "state"):
        yield tmp_path


def test_a_token_that_no_text_holds_does_no_harm(project):
    ready = preflight(Recipe.parse(recipe_values(project)), project / "state")
    assert ready.shape.vocabulary == VOCABULARY


def test_the_files_alone_tell_of_most_tokenizers(tmp_path):
    model = write_model(tmp_path / "model")
    assert (embedding_rows(model), most_token_ids(model)) == (VOCABULARY, VOCABULARY)
    grow(model, bos_token="<bos>", extra_special_tokens=["<a>", "w1"])
    assert most_token_ids(model) == VOCABULARY + 3
    assert len(AutoTokenizer.from_pretrained(model)) == VOCABULARY + 3


@pytest.mark.parametrize("text", ["calibration", "evaluation"])
def test_a_token_in_a_text_is_told_with_file_and_line(project, text):
    file = project / f"{text}.txt"
    file.write_text("one text\nand <new> here\n" * 40)
    with pytest.raises(InputError) as refused:
        preflight(Recipe.parse(recipe_values(project)), project / "state")
    assert str(refused.value) == f"{file} line 2 {FOUND}"
    with pytest.raises(InputError) as refused:
        preflight(TernaryRecipe.parse(ternary_values(project)), project / "state")
    assert str(refused.value) == f"{file} line 2 {FOUND}"


def test_a_token_in_a_document_is_told_with_its_line(project):
    file = project / "c.jsonl"
    rows = [{"text": "one"}, {"text": "two\nlines"}, {"text": "a <new> one"}]
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    values = recipe_values(project)
    values["calibration"]["path"] = str(file)
    with pytest.raises(InputError, match=r"c\.jsonl line 3 must hold tokens of the model alone; "):
        preflight(Recipe.parse(values), project / "state")


def test_a_token_in_the_text_of_an_ablation_is_told(project):
    values = ablation_values(project)
    values["ablation"]["studies"]["calibration"] = ["text", "random"]
    values["ablation"]["text"] = str(project / "own.txt")
    (project / "own.txt").write_text("<new>")
    with pytest.raises(InputError, match=r"own\.txt line 1 must hold tokens of the model alone; "):
        ablation.preflight(AblationRecipe.parse(values), project / "state")


@pytest.mark.parametrize(
    ("task", "item"),
    [
        ("piqa", {"goal": "g", "sol1": "a", "sol2": "a\n<new>", "label": 0}),
        (
            "arc_easy",
            {
                "question": "q",
                "choices": {"text": ["a", "<new>"], "label": ["A", "B"]},
                "answerKey": "A",
            },
        ),
    ],
)
def test_a_token_in_an_item_is_told_with_its_line(project, task, item):
    file = project / "items" / task / "x.jsonl"
    file.parent.mkdir(parents=True)
    good = json.dumps(item).replace("<new>", "b")
    file.write_text(f"{good}\n{json.dumps(item)}\n")
    values = recipe_values(project)
    values["evaluation"] |= {"tasks": [task], "data": str(project / "items")}
    with pytest.raises(InputError, match=rf"{file} line 2 must hold tokens of the model alone; '<"):
        preflight(Recipe.parse(values), project / "state")


def test_a_beginning_beyond_the_embedding_is_refused_where_something_begins_with_it(project):
    grow(project / "model", bos_token="<bos>")
    values = recipe_values(project)
    preflight(Recipe.parse(values), project / "state")
    values["calibration"] = {"source": "generated", "samples": 8, "length": 16}
    with pytest.raises(
        InputError, match=r"the bos_token of .*/model, which texts begin with, must have a row in"
    ):
        preflight(Recipe.parse(values), project / "state")


def test_a_model_to_evaluate_is_asked_before_it_is_opened(project, engine_environment):
    from flows.pipeline.measuring import measuring, opened

    model, text = project / "model", project / "evaluation.txt"
    request = EvaluationRequest.parse(
        {"models": [str(model)], "evaluation": {"perplexity": {"path": str(text)}}}
    )
    with opened(request.models, request) as models:
        assert measuring(models, request).text.path == text
        text.write_text("text\n\n<new>")
        with pytest.raises(InputError, match=r"evaluation\.txt line 3 must hold tokens of the mod"):
            measuring(models, request)


# What is read elsewhere than from a text file, or added by the class of the tokenizer, is found
# where it is read, before a model is asked.


@pytest.fixture
def opened_model(project):
    model = load_causal_lm(project / "model", torch.float32, "cpu")
    return model, AutoTokenizer.from_pretrained(project / "model")


@pytest.mark.parametrize("source", ["text", "dataset"])
def test_a_token_in_a_data_set_is_told(project, opened_model, source):
    file = project / "c.jsonl"
    file.write_text(json.dumps({"text": "one two <new> " * 100}))
    config = CalibrationConfig(source=source, path=str(file), samples=8, length=8)
    model, tokenizer = opened_model
    with pytest.raises(InputError) as refused:
        build_calibration_set(config, tokenizer, model, 8, seed=0)
    assert str(refused.value) == f"{source} {file} {FOUND}"


def test_a_token_that_a_prompt_brings_is_told_with_its_item(opened_model):
    model, tokenizer = opened_model
    tokenizer.bos_token = "<new>"
    items = [{"text": "a word"}, {"text": "a <new>"}]
    with pytest.raises(InputError, match=r"^item 1 of lambada_openai, counted from 0, must hold"):
        score_task(model, tokenizer, "lambada_openai", items)
