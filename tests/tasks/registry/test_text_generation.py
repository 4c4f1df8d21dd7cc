"""What predict of a registered model answers, what it refuses, and that it does so quietly."""

import json
import logging
import shutil
import warnings

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc.scoring_server import invocations
from transformers import GenerationConfig

from tasks.registry.flavor.folder import signature, write_model_folder

PROMPTS = ["once upon a time", "the cat"]
PARAMS = {"max_new_tokens": 5}
CHAT = [{"role": "user", "content": "once upon"}, {"role": "assistant", "content": "a time"}]
TEMPLATE = (
    "{% for message in messages %}{% if message.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('no such role: ' + message.role) }}{% endif %}"
    "{{ message.content }} </s> {% endfor %}{% if add_generation_prompt %}there{% endif %}"
)
KEYS = "predict takes a text, a list of texts, a DataFrame or dict with texts as `prompt`, or chat"


def loaded(tiny_export, folder, template: str | None):
    """Return the model as MLflow loads it, with a generation config full of sampling."""
    export = folder / "export"
    templates = shutil.ignore_patterns("*.jinja", "additional_chat_templates")
    shutil.copytree(tiny_export, export, ignore=templates)
    GenerationConfig(
        do_sample=True, temperature=0.6, top_k=3, top_p=0.9, max_length=40, eos_token_id=[1, 0]
    ).save_pretrained(export)
    if template:
        (export / "chat_template.jinja").write_text(template)
    write_model_folder(folder / "model", export, [], Model())
    return mlflow.pyfunc.load_model(str(folder / "model"))


@pytest.fixture(scope="module")
def model(tiny_export, tmp_path_factory):
    return loaded(tiny_export, tmp_path_factory.mktemp("plain"), None)


@pytest.fixture(scope="module")
def chat_model(tiny_export, tmp_path_factory):
    return loaded(tiny_export, tmp_path_factory.mktemp("chat"), TEMPLATE)


@pytest.fixture(scope="module")
def answers(model):
    found = model.predict(PROMPTS, params=PARAMS)
    assert len(set(found)) == 2
    return found


@pytest.mark.parametrize(
    "data",
    [
        PROMPTS,
        tuple(PROMPTS),
        {"prompt": PROMPTS},
        {"prompt": np.array(PROMPTS)},
        np.array(PROMPTS),
        np.array(PROMPTS, dtype=object),
        pd.Series(PROMPTS, name="anything"),
        pd.DataFrame({"prompt": PROMPTS}),
        pd.DataFrame({"id": [7, 8], "prompt": PROMPTS, "role": ["a", "b"]}, index=[4, 4]),
    ],
    ids=str,
)
def test_every_prompt_has_its_answer_however_it_is_given(model, answers, data):
    assert model.predict(data, params=PARAMS) == answers


@pytest.mark.parametrize("data", [PROMPTS[1], PROMPTS[1:], {"prompt": PROMPTS[1]}], ids=str)
def test_one_text_has_one_answer(model, answers, data):
    assert model.predict(data, params=PARAMS) == answers[1:]


@pytest.mark.parametrize(
    "payload",
    [
        {"inputs": PROMPTS},
        {"inputs": {"prompt": PROMPTS}},
        {"instances": PROMPTS},
        {"dataframe_records": [{"id": 1, "prompt": one} for one in PROMPTS]},
        {
            "dataframe_split": {
                "columns": ["id", "prompt"],
                "data": [[1, PROMPTS[0]], [2, PROMPTS[1]]],
            }
        },
    ],
    ids=str,
)
def test_a_server_answers_the_same(model, answers, payload):
    assert served(model, payload | {"params": PARAMS}) == {"predictions": answers}


def served(model, payload: dict):
    schema = model.metadata.get_input_schema()
    response = invocations(json.dumps(payload), "application/json", model, schema)
    assert response.status == 200
    return json.loads(response.response)


def test_a_chat_goes_through_the_template(chat_model):
    prompt = "once upon </s> a time </s> there"
    expected = chat_model.predict(prompt, params=PARAMS)
    for data in (CHAT, {"messages": CHAT}, np.array(CHAT), tuple(CHAT)):
        assert chat_model.predict(data, params=PARAMS) == expected
    assert served(chat_model, {"inputs": CHAT, "params": PARAMS})["predictions"] == expected
    assert served(chat_model, {"messages": CHAT} | PARAMS) == expected


def test_a_chat_that_the_template_does_not_take_is_refused(model, chat_model):
    with pytest.raises(ValueError, match="need a tokenizer with a chat template, and this one has"):
        model.predict(CHAT)
    stranger = [{"role": "stranger", "content": "once"}]
    with pytest.raises(ValueError, match="refuses the messages: no such role: stranger"):
        chat_model.predict(stranger)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (None, "None"),
        (7, "7"),
        (0.5, "0.5"),
        (True, "True"),
        ([], "an empty list"),
        ({}, "a dict of nothing"),
        (["once", None], "None at place 1"),
        (["once", 3], "3 at place 1"),
        ([PROMPTS], "a list at place 0"),
        ([CHAT], "a list at place 0"),
        ([{"prompt": "once"}], "a dict at place 0"),
        ([{"role": "user"}], "a dict at place 0"),
        ([{"role": "user", "content": None}], "a dict at place 0"),
        ({"id": [1], "text": ["once"]}, "a dict of id, text"),
        ({"prompt": "once", "max_new_tokens": 3}, "a dict of prompt, max_new_tokens"),
        ({"prompt": []}, "an empty list"),
        ({"prompt": None}, "None"),
        ({"prompt": CHAT}, "chat messages as `prompt`"),
        ({"messages": "once"}, "a str as `messages`"),
        ({"messages": []}, "an empty list as `messages`"),
        (b"once", "a bytes"),
        (np.array([1.0, 2.0]), "1.0 at place 0"),
        (np.array([], dtype=str), "an empty list"),
        (pd.Series(["once", None]), "nan at place 1"),
        (pd.DataFrame({"id": [1], "text": ["once"]}), "a DataFrame with the columns id, text"),
        (pd.DataFrame({"prompt": ["once", np.nan]}), "nan at place 1"),
        (pd.DataFrame({"prompt": []}), "an empty list"),
        (pd.DataFrame([["a", "b"]], columns=["prompt"] * 2), "with the columns prompt, prompt"),
    ],
    ids=str,
)
def test_all_else_is_refused_with_what_is_accepted(model, data, found):
    with pytest.raises(ValueError, match=KEYS) as caught:
        model.predict(data, params=PARAMS)
    assert found in str(caught.value)


@pytest.mark.parametrize("data", ["sun \ud83c", ["sun", "sun \ud83c"]], ids=["text", "list"])
def test_half_a_character_is_refused(model, data):
    with pytest.raises(ValueError, match=r"valid Unicode; prompt . has half a character at 4"):
        model.predict(data, params=PARAMS)


def test_a_prompt_that_does_not_fit_with_its_answer_is_refused_before_any_is_answered(model):
    assert len(model.predict(["sun " * 59], params=PARAMS)) == 1
    with pytest.raises(
        ValueError, match=r"context of 64 tokens together; prompt 1 has 60 tokens and max_new_tok"
    ):
        model.predict(["sun", "sun " * 60], params=PARAMS)
    with pytest.raises(ValueError, match="prompt 0 has 65 tokens"):
        model.predict("sun " * 65, params={"max_new_tokens": 1})


def test_a_server_says_why_it_refuses(model):
    with pytest.raises(MlflowException, match=KEYS) as caught:
        served(model, {"inputs": [1, 2]})
    assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize("params", [{"max_new_tokens": 0}, {"temperature": -1.0}])
def test_params_that_no_call_can_have_are_refused(model, params):
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1 and temperature a num"):
        model.predict("once", params=params)


def test_the_number_of_new_tokens_follows_from_the_context_where_none_is_named(model):
    (answer,) = model.predict("once upon")
    assert 1 <= len(answer.split()) <= 32  # of a context of 64
    defaults = [
        {param.name: param.default for param in signature(config).params.params}["max_new_tokens"]
        for config in ({}, {"n_positions": 2048}, {"text_config": {"max_position_embeddings": 20}})
    ]
    assert defaults == [64, 64, 10]


def test_an_ordinary_call_says_nothing(model, chat_model, caplog, capfd):
    loggers = [logging.getLogger(name) for name in ("transformers", "mlflow")]
    for one in loggers:
        one.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for data in (PROMPTS, pd.DataFrame({"id": [1], "prompt": ["once"]}), "", "sun " * 40):
                model.predict(data, params=PARAMS)
            model.predict("once", params={"temperature": 0.7, "seed": 3})
            chat_model.predict(CHAT, params=PARAMS)
    finally:
        for one in loggers:
            one.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == []
    assert capfd.readouterr() == ("", "")


def test_no_setting_for_sampling_that_comes_with_a_model_touches_a_greedy_answer(model, answers):
    hot = {"max_new_tokens": 5, "temperature": 3.0, "seed": 1}
    sampled = [model.predict(PROMPTS, params=hot | {"seed": seed}) for seed in (1, 1, 2, 3)]
    assert sampled[0] == sampled[1]
    assert len({tuple(one) for one in sampled}) > 1
    assert model.predict(PROMPTS, params=PARAMS) == answers
