"""A tokenizer that brings its own code is refused, and its code never runs, whoever says yes."""

import io
import json

import pytest

from normtweak_core.errors import InputError
from normtweak_core.export.verification.reader import check_tokenizer
from normtweak_core.model.tokenizer import load_tokenizer
from tasks.models.subjects import Subject
from tests.flows.tiny_model import write_model

CODE = """
from pathlib import Path
from transformers import TokenizersBackend
Path({mark!r}).touch()
class Home(TokenizersBackend):
    pass
"""
CLASS = "home.Home"
ENTRIES = {
    "a pair": ("tokenizer_config.json", [CLASS, None], r"auto_map: home\.Home"),
    "by name": ("tokenizer_config.json", {"AutoTokenizer": [CLASS, None]}, "auto_map: home"),
    "the fast one": ("tokenizer_config.json", {"AutoTokenizer": [None, CLASS]}, "auto_map: home"),
    "another folder's": (
        "tokenizer_config.json",
        {"AutoTokenizer": [f"a/b--{CLASS}"]},
        "auto_map: a/b--",
    ),
    "of nothing": ("tokenizer_config.json", {"AutoTokenizer": [None]}, r"auto_map: \[null\]"),
    "of the model": ("config.json", {"AutoTokenizer": CLASS}, r"auto_map\.AutoTokenizer: home"),
}


@pytest.fixture
def mark(tmp_path):
    """Where the foreign code would leave a file."""
    return tmp_path / "mark"


@pytest.fixture
def yes(monkeypatch, tmp_path):
    """Somebody at the terminal who agrees to everything."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 10))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))


def with_code(folder, mark, file, entry):
    write_model(folder)
    (folder / "home.py").write_text(CODE.format(mark=str(mark)))
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(settings | {"auto_map": entry}))
    return folder


@pytest.mark.parametrize("name", ENTRIES)
def test_a_tokenizer_with_its_own_code_is_refused_by_file_and_entry(name, tmp_path, mark, yes):
    file, entry, told = ENTRIES[name]
    folder = with_code(tmp_path / "model", mark, file, entry)
    with pytest.raises(InputError, match=rf"{file} has {told}.*never executed here\. Convert"):
        load_tokenizer(folder)
    assert not mark.exists()


def test_no_way_to_a_tokenizer_runs_its_code(tmp_path, mark, yes):
    folder = with_code(tmp_path / "model", mark, *ENTRIES["by name"][:2])
    subject = Subject("it", "float", folder, "1", "2", "float32", "cpu")
    with pytest.raises(InputError, match="never executed here"):
        subject.tokenizer  # noqa: B018
    # Beside a GGUF file transformers looks for the settings of the folder all the same.
    (folder / "model.gguf").write_bytes(b"GGUF")
    beside = Subject("it", "quantized", folder / "model.gguf", "1", "2", "float32", "cpu")
    with pytest.raises(InputError, match="never executed here"):
        beside.tokenizer  # noqa: B018
    problems = []
    check_tokenizer(folder, {"text": "w1", "ids": [1], "decoded": "w1"}, None, problems)
    assert [(one["what"], one["name"]) for one in problems] == [("tokenizer", "loading")]
    assert "trust_remote_code=True" in problems[0]["found"]
    assert not mark.exists()


def test_a_registered_version_runs_no_code_of_its_folder(tmp_path, mark, yes):
    from tasks.registry.flavor.text_generation import TextGeneration

    folder = with_code(tmp_path / "model", mark, *ENTRIES["by name"][:2])
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        TextGeneration(folder)
    assert not mark.exists()


def test_code_that_transformers_has_itself_is_what_runs(tmp_path, mark, yes):
    # Many folders name their authors' files although transformers has long had the model.
    folder = with_code(tmp_path / "model", mark, "config.json", {"AutoModelForCausalLM": CLASS})
    assert load_tokenizer(folder)("w1 w7").input_ids == [1, 7]
    assert not mark.exists()


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        (
            "tokenizer.json",
            {"added_tokens": [], "model": {"type": "Nothing"}},
            "is not: Exception: ",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": 3}}, "TypeError: Found a"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_an_error_in_one_sentence(tmp_path, file, content, told):
    folder = write_model(tmp_path / "model")
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"must come with a tokenizer that transformers .*{told}"):
        load_tokenizer(folder)
