"""Text and JSON that a person gives: read whatever editor wrote it, refused with file and line."""

import json

import pytest

from normtweak_core.calibration.documents import read_documents
from normtweak_core.errors import InputError
from normtweak_core.given_files import parse_json, read_json_object, read_utf8

HALF = r"it holds half of a surrogate pair, which is no character, in '\ud800'"
DEEP = "[" * 100_000
DIGITS = "9" * 5000


@pytest.mark.parametrize(
    ("text", "at", "said"),
    [
        ('{"a": "\\ud800"}', 1, HALF),
        ('{"a":\n ["x", {"\\uD800": 1}]}', 2, HALF),
        ('{"a":\n\n' + DIGITS + "}", 3, "it has a number of more than 4300 digits"),
        (DEEP, 1, "it is nested too deeply to be read"),
        ('{"a": 1,\n}', 2, "it is not valid JSON: Expecting property name enclosed in"),
    ],
)
def test_json_that_cannot_be_used_is_refused_with_file_and_line(text, at, said):
    with pytest.raises(InputError) as refused:
        parse_json(text, "/a.json", "save it again")
    assert str(refused.value).startswith(f"/a.json line {at} must be JSON; {said}")
    assert str(refused.value).endswith(": save it again")
    with pytest.raises(InputError, match=r"^/a\.jsonl line 7 must be one JSON object; "):
        parse_json(text, "/a.jsonl", "check it", 7)


@pytest.mark.parametrize("character", ["\U0001f600", "\ud83d\ude00", "é", "\ufeff"])
def test_whole_characters_are_read_however_they_are_written(character):
    whole = character.encode("utf-16", "surrogatepass").decode("utf-16")
    assert parse_json(json.dumps({"a": character}), "/a", "") == {"a": whole}


def test_numbers_that_configs_of_models_hold_are_read():
    assert parse_json('{"time_step_limit": [0.0, Infinity]}', "/a", "") == {
        "time_step_limit": [0.0, float("inf")]
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, encoding):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding=encoding)
    assert read_json_object(tmp_path / "a.json", "") == {"a": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_text_in_utf_16_is_called_that(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("﻿text" if encoding == "utf-16-le" else "text", encoding)
    with pytest.raises(InputError, match=r"a\.txt must be UTF-8; it is UTF-16: convert the file$"):
        read_utf8(tmp_path / "a.txt")


def test_json_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InputError, match=r"a\.json must be a JSON object; it is a list: save it$"):
        read_json_object(tmp_path / "a.json", "save it")


@pytest.mark.parametrize("name", ["a.TXT", "a.txt", "a.JSONL", "a.Jsonl"])
def test_names_of_texts_may_be_written_in_capitals(tmp_path, name):
    (tmp_path / name).write_bytes('\ufeff{"text": "one"}\r\n{"text": "two"}\r\n'.encode())
    found = read_documents(tmp_path / name)
    assert found == (
        ["one", "two"] if name.lower().endswith("l") else ['{"text": "one"}\r\n{"text": "two"}\r\n']
    )


@pytest.mark.parametrize("bad", ['{"text": "\\ud800"}', '{"text": ' + DIGITS + "}", DEEP])
def test_a_document_that_cannot_be_used_is_refused_with_its_line(tmp_path, bad):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n\n' + bad + "\n")
    with pytest.raises(InputError, match=r"/a\.jsonl line 3 must be one JSON object; it "):
        read_documents(tmp_path / "a.jsonl")
