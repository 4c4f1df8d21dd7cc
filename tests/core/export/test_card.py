"""What an export carries on of the float model's own card: base model, licence, citation, terms."""

import shutil

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects

from normtweak_core.export.config import ExportConfig
from normtweak_core.export.origin import SourceCard
from normtweak_core.export.payload import payload_sha256
from normtweak_core.export.writer import copy_export, write_export
from normtweak_core.model.hub import FILES, NOT_FILES, hub_id_of
from tests.tiny_exports import quantize_all, save_tiny_model, tiny_config

ENTRY = "@misc{tiny,\n  title = {A tiny model},\n  author = {Ä. Person}\n}"
CARD = f"""---
license: other
license_name: tiny-community
license_link: LICENSE
language:
- en
- de
pipeline_tag: text-generation
---
# Tiny

    print("no citation: @misc{{indented, x}}")

```python
print("neither: @model")
```

## Cite

```bibtex
{ENTRY}
```
"""
COMMIT = "0" * 40


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_tiny_model(folder, tiny_config("llama"))
    return folder, quantize_all(folder, 4, 32, True)


def in_cache(tiny, tmp_path, card=CARD):
    """The model as the hub's cache holds it, with a card and its terms."""
    folder = tmp_path / "models--some.org--tiny-llama" / "snapshots" / COMMIT
    shutil.copytree(tiny[0], folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "LICENSE").write_text("Do good.\n")
    (folder / "NOTICE.md").write_bytes(b"\xff by others")
    (folder / "LICENSES").mkdir()
    return folder


def export(tiny, source, out):
    return write_export(out, source, tiny[1], {}, ExportConfig())


def test_the_card_says_what_it_was_made_from_and_on_which_terms(tiny, tmp_path):
    record = export(tiny, in_cache(tiny, tmp_path), tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")  # as the hub reads it
    assert card.data.base_model == "some.org/tiny-llama"
    assert card.data.license == "other"
    assert card.data.license_name == "tiny-community"
    assert card.data.license_link == "LICENSE"
    assert card.data.language == ["en", "de"]
    assert card.data.library_name == "transformers"
    assert card.data.tags == ["quantized", "4-bit", "compressed-tensors"]
    told = card.data.to_dict()
    assert told["base_model_relation"] == "quantized"
    assert told["quantized_by"] == "normtweak"
    assert "pipeline_tag" not in told
    assert f"## Citation of the float model\n\n```bibtex\n{ENTRY}\n```" in card.text
    assert "no citation" not in card.text
    assert "The terms of the float model hold: `LICENSE`, `NOTICE.md`.\n" in card.text
    assert (tmp_path / "out" / "LICENSE").read_text() == "Do good.\n"
    assert (tmp_path / "out" / "NOTICE.md").read_bytes() == b"\xff by others"

    copied = copy_export(record, tmp_path / "copy")
    assert (tmp_path / "copy" / "LICENSE").read_text() == "Do good.\n"
    assert copied.payload_sha256 == payload_sha256(tmp_path / "copy")


def test_terms_and_card_leave_the_payload_as_it_is(tiny, tmp_path):
    plain = export(tiny, tiny[0], tmp_path / "plain")
    cached = export(tiny, in_cache(tiny, tmp_path), tmp_path / "cached")
    assert plain.payload_sha256 == cached.payload_sha256
    card = ModelCard.load(tmp_path / "plain" / "README.md")
    assert card.data.base_model is None
    assert card.data.license is None
    assert card.data.to_dict()["quantized_by"] == "normtweak"
    assert "float model" not in card.text


@pytest.mark.parametrize(
    "card", ["", "# No head\n", "---\n: [\n---\n# Torn\n", "---\n- a list\n---\n", "---\nno end"]
)
def test_a_card_that_says_nothing_is_no_obstacle(tiny, tmp_path, card):
    found = SourceCard.of(in_cache(tiny, tmp_path, card))
    assert (found.head, found.citations) == ({}, ())
    assert found.hub_id == "some.org/tiny-llama"
    assert found.legal == ("LICENSE", "NOTICE.md")


def test_no_is_a_language_and_odd_values_end_nothing(tiny, tmp_path):
    head = "date: 2024-13-45\nnumber: 0b_\nlicense: 'MIT'\nlanguage: [en, no, on]\n"
    source = in_cache(tiny, tmp_path, f"\ufeff\n---\n{head}---\n# Odd\n")
    export(tiny, source, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.language == ["en", "no", "on"]
    assert card.data.license == "MIT"


def test_only_a_snapshot_of_the_cache_has_an_id(tmp_path):
    names = {
        "models--a--b/snapshots/x": "a/b",
        "models--a--b--c/snapshots/x": "a/b--c",
        "models--gpt2/snapshots/x": None,
        "datasets--a--b/snapshots/x": None,
        "models--a--b/blobs/x": None,
        "a/b": None,
    }
    assert {name: hub_id_of(tmp_path / name) for name in names} == names


def test_card_and_terms_are_fetched_with_a_model():
    given = [
        "README.md",
        "LICENSE",
        "LICENSE.txt",
        "NOTICE",
        "USE_POLICY.md",
        "logo.png",
        "a/LICENSE",
    ]
    found = filter_repo_objects(given, allow_patterns=FILES, ignore_patterns=NOT_FILES)
    assert list(found) == given[:5]
