"""The exported tokenizer answers as the float model's did: marks, vocabulary, every chat template.

Without the weights: only what the manifest says of the tokenizer and what the reader finds.
"""

import json
import shutil

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from normtweak_core.export.verification import reader
from normtweak_core.export.verification.tokenizer_probe import tokenizer_probe
from tests.broken_exports import OURS

DEFAULT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>"
DATED = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
TOOLS = "{{ tools[0].function.name }} {{ documents[0].text }}"
REFUSES = "{{ raise_exception('only a system prompt') }}"
TEMPLATES = {"default": DEFAULT, "dated": DATED, "refuses": REFUSES, "tool_use": TOOLS}
CHAT = "<|endoftext|>[user]What is 6 times 7?[assistant]42.[user] And  half of it?\n>"


@pytest.fixture
def folder(tmp_path):
    """A tokenizer with added tokens and templates, as this version of transformers saves it."""
    tokenizer = AutoTokenizer.from_pretrained(OURS)
    tokenizer.add_special_tokens({"pad_token": AddedToken("<pad>", special=True)})
    tokenizer.add_tokens([AddedToken("<tool>", lstrip=True), "spam"])
    tokenizer.chat_template = TEMPLATES
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def problems(folder, probe):
    found = []
    assert reader.check_tokenizer(folder, probe, None, found)
    return [one["name"] for one in found]


def test_the_probe_holds_what_each_template_writes_on_whatever_day(folder):
    probe = tokenizer_probe(folder)
    assert probe["chats"] == {
        "default": CHAT,
        "dated": "26 Jul 2024",
        "refuses": "TemplateError",
        "tool_use": "halve Half of 42 is 21.",
    }
    assert probe["special_tokens"]["pad_token"] == "<pad>"
    assert {"<pad>", "<tool>", "spam"} <= set(probe["marked_text"].split())
    assert "<pad>" not in probe["unmarked"]
    assert "spam" in probe["unmarked"]
    assert probe == json.loads(json.dumps(probe))  # a manifest gives it back as it was


def test_a_copy_answers_everything_and_the_old_layouts_of_templates_too(folder, tmp_path):
    probe = tokenizer_probe(folder)
    assert problems(shutil.copytree(folder, tmp_path / "copy"), probe) == []
    shutil.rmtree(folder / "additional_chat_templates")
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    listed = [{"name": name, "template": text} for name, text in TEMPLATES.items()]
    path.write_text(json.dumps(settings | {"chat_template": listed}))
    assert problems(folder, probe) == []
    assert tokenizer_probe(folder) == probe
    path.write_text(json.dumps(settings | {"chat_template": DEFAULT}))
    assert problems(folder, probe) == ["chat_templates", "chats"]
    assert tokenizer_probe(folder)["chats"] == {"default": CHAT}


def without_a_template(folder):
    (folder / "additional_chat_templates" / "tool_use.jinja").unlink()


def another_template(folder):
    (folder / "chat_template.jinja").write_text(DEFAULT + "{# nothing more #}")


def another_end(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "spam"}))


def no_longer_special(folder):
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text())
    next(one for one in stored["added_tokens"] if one["content"] == "<tool>")["lstrip"] = False
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (without_a_template, {"chat_templates", "chats"}),
        (another_template, {"chat_templates"}),
        (another_end, {"special_tokens"}),
        (no_longer_special, {"marked_ids", "added_tokens_sha256"}),
    ],
)
def test_whatever_of_a_tokenizer_is_lost_is_found(folder, damage, expected):
    probe = tokenizer_probe(folder)
    damage(folder)
    assert {*problems(folder, probe)} >= expected


def test_an_export_of_before_is_asked_what_its_manifest_holds(folder):
    probe = tokenizer_probe(folder)
    old = {name: probe[name] for name in ("text", "ids", "decoded")}
    without_a_template(folder)
    assert problems(folder, old) == []


def test_a_folder_without_a_tokenizer_is_asked_nothing(tmp_path):
    assert tokenizer_probe(tmp_path) is None
