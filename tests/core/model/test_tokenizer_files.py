"""The files of a tokenizer that we know by name are those that transformers says it reads."""

import json
import shutil

import pytest
from transformers import AutoTokenizer, TokenizersBackend
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import (
    TOKENIZER_MAPPING_NAMES,
    tokenizer_class_from_name,
)
from transformers.utils.hub import CHAT_TEMPLATE_DIR

from normtweak_core.errors import InputError
from normtweak_core.model.tokenizer import COMMON_FILES, files_read, load_tokenizer
from normtweak_core.model.tokenizer_files import CHAT_TEMPLATES, tokenizer_files
from tests.broken_exports import OURS

# Needs a library that is not installed; its vocabulary is *.model, as that of the others.
NOT_HERE = {"BartphoTokenizer", "CpmTokenizer", "PLBartTokenizer"}


def names_that_classes_read():
    names = set(COMMON_FILES)
    classes = {TOKENIZER_MAPPING_NAMES.get(kind) for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    for name in classes - {None} - NOT_HERE:
        one = tokenizer_class_from_name(name)
        names |= {*getattr(one, "vocab_files_names", {}).values()}
    return names


def test_every_name_that_a_tokenizer_class_of_transformers_reads_is_known(tmp_path):
    names = names_that_classes_read()
    assert {"tokenizer.json", "vocab.txt", "spiece.model", "emoji.json"} < names
    names |= {f"{CHAT_TEMPLATE_DIR}/tool_use.jinja", "tokenizer.4.0.0.json", "tekken.json"}
    names |= {"tokenizer.model.v3", "qwen.tiktoken", "tiktoken.model"}
    (tmp_path / CHAT_TEMPLATES).mkdir()
    for name in names:
        (tmp_path / name).touch()
    found = {path.relative_to(tmp_path).as_posix() for path in tokenizer_files(tmp_path)}
    assert found == names


def test_files_of_a_model_that_are_no_tokenizer_are_none(tmp_path):
    for name in ("README.md", "config.json", "model.safetensors", "words.jinja", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / CHAT_TEMPLATES / "old").mkdir(parents=True)
    (tmp_path / CHAT_TEMPLATES / "old" / "x.jinja").touch()
    (tmp_path / "tokenizer_config.json").mkdir()
    assert tokenizer_files(tmp_path) == []


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(OURS, tmp_path / "model")
    return tmp_path / "model"


def test_a_tokenizer_says_which_files_it_was_made_from(folder):
    (folder / CHAT_TEMPLATES).mkdir()
    for name in ("chat_template.jinja", f"{CHAT_TEMPLATES}/tool_use.jinja"):
        (folder / name).write_text("{{ messages[0].content }}")
    shutil.copy(folder / "tokenizer.json", folder / "tokenizer.4.0.0.json")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"fast_tokenizer_files": ["tokenizer.4.0.0.json", "tokenizer.json"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(folder)
    assert {*tokenizer.chat_template} == {"default", "tool_use"}
    assert sorted(
        path.relative_to(folder).as_posix() for path in files_read(tokenizer, folder)
    ) == [
        f"{CHAT_TEMPLATES}/tool_use.jinja",
        "chat_template.jinja",
        "tokenizer.4.0.0.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_tokenizer_that_reads_a_file_of_a_kind_nobody_knows_is_refused(folder, monkeypatch):
    names = TokenizersBackend.vocab_files_names | {"words_file": "words.bin"}
    monkeypatch.setattr(TokenizersBackend, "vocab_files_names", names)
    assert load_tokenizer(folder).__class__ is AutoTokenizer.from_pretrained(folder).__class__
    (folder / "words.bin").touch()
    with pytest.raises(InputError, match=r"reads words\.bin, which is none: save the tokenizer"):
        load_tokenizer(folder)
