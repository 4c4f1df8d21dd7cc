"""What is part of a key of a stage, and what is not."""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

FACTS = {
    "parents": ["p"],
    "inputs": {"bits": 2, "lr": 1e-3},
    "sources": ["normtweak_core.randomness"],
    "device": "cuda:0",
    "threads": 2,
}


@pytest.mark.parametrize(
    "change",
    [
        {"parents": ["q"]},
        {"parents": ["p", "p"]},
        {"inputs": {"bits": 3, "lr": 1e-3}},
        {"inputs": {"bits": 2, "lr": 1.1e-3}},
        {"inputs": {"bits": "2", "lr": 1e-3}},
        {"sources": ["normtweak_core.errors"]},
        {"device": "cpu"},
        {"threads": 1},
        {"shared": {"dtype": "float32"}},
    ],
)
def test_every_part_of_a_key_counts(caching, change):
    assert caching.stage_key("block", **FACTS) != caching.stage_key("block", **{**FACTS, **change})


def test_a_key_depends_on_nothing_else(caching, monkeypatch, tmp_path):
    key = caching.stage_key("block", **FACTS)
    assert key.startswith("block-")
    assert key != caching.stage_key("other", **FACTS)
    monkeypatch.chdir(tmp_path)
    reordered = {**FACTS, "inputs": {"lr": 1e-3, "bits": 2}, "device": "cuda:1"}
    assert caching.stage_key("block", **reordered) == key


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shared": {"dtype": "a"}, "inputs": {"dtype": "b"}}, "of block must be given once; dtyp"),
        ({"inputs": {"threads": 2, "device": "cpu"}}, "; device, threads is a fact that its job"),
        ({"shared": {"device": "cpu"}}, "; device is a fact that its job shares already: give the"),
    ],
)
def test_a_name_given_twice_is_an_error_instead_of_a_value_that_does_not_count(
    caching, given, message
):
    with pytest.raises(ValueError, match=message):
        caching.stage_key("block", **{**FACTS, **given})


def test_a_shared_fact_is_another_one_than_an_input_of_that_name(caching):
    shared = caching.stage_key("block", **{**FACTS, "shared": {"dtype": "a"}})
    own = caching.stage_key("block", **{**FACTS, "inputs": FACTS["inputs"] | {"dtype": "a"}})
    assert shared != own


def test_a_config_counts_by_its_values(caching):
    class Config(BaseModel):
        bits: int
        groups: tuple[int, ...] = (1, 2)

    def key(config):
        return caching.stage_key("block", **{**FACTS, "inputs": {"config": config}})

    assert key(Config(bits=2)) == key({"bits": 2, "groups": [1, 2]})
    assert key(Config(bits=2)) != key(Config(bits=3))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"path": Path("a")}, "inputs.path must be text, a number, a list, a mapping or a pydanti"),
        ({"a": [{1, 2}]}, r"inputs.a\[0\] must be text.*found set. Pass a content hash instead."),
        ({"a": {1: 2}}, "inputs.a must have text as keys to make a cache key"),
    ],
)
def test_what_has_no_stable_text_is_refused(caching, inputs, message):
    with pytest.raises(TypeError, match=message):
        caching.stage_key("block", **{**FACTS, "inputs": inputs})


def test_not_a_number_is_refused_as_part_of_a_key(caching):
    with pytest.raises(ValueError, match="not JSON compliant"):
        caching.stage_key("block", **{**FACTS, "inputs": {"a": float("nan")}})


def test_keys_need_no_torch(program):
    code = (
        "import sys; from tasks.engine.caching import stage_key\n"
        f"stage_key('block', **{json.dumps(FACTS)})\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    program("-c", code).finish()
