import json

import pytest

from normtweak_core.calibration.text import cut_windows, read_documents
from normtweak_core.errors import InputError


def test_a_txt_file_is_one_document_with_its_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("première\r\nzweite\n\n".encode())
    assert read_documents(path) == ["première\r\nzweite\n\n"]


def test_a_jsonl_file_is_one_document_a_line_even_with_unicode_separators_inside(tmp_path):
    documents = ["one\u2028still one", "two\nlines", "", "drei \x85 vier"]
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": d, "id": 1}, ensure_ascii=False) for d in documents]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    assert read_documents(path) == documents


def test_a_byte_order_mark_is_not_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfhello")
    assert read_documents(path) == ["hello"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text", r"must end in \.txt or \.jsonl; found .*a\.csv"),
        ("a.txt", None, r"a\.txt does not exist: give the path"),
        ("a.txt", b"good \xff", r"must be UTF-8; byte 5 is not: convert"),
        ("a.txt", b" \n\t", r"holds no text: give a file with at least one document"),
        ("a.jsonl", b'{"text": ""}\n', r"holds no text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"line 2 must be one JSON object; .* not valid"),
        ("a.jsonl", b'{"body": "a", "id": 1}', r'line 1 .* field "text"; found body, id'),
        ("a.jsonl", b'{"text": 3}', r'line 1 .* string field "text"'),
        ("a.jsonl", b'["a"]', r"line 1 .*; found list"),
    ],
)
def test_a_file_that_is_no_text_is_refused_in_words(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_documents(path)


@pytest.mark.parametrize("name", ["llama", "neox"])
@pytest.mark.parametrize("length", [8, 33])
def test_windows_are_the_concatenated_documents_cut_in_order(request, texts, name, length):
    tokenizer = request.getfixturevalue(f"{name}_tokenizer")
    documents = texts[:40]
    stream = []
    for document in documents:  # one at a time, as slow and obvious as it gets
        stream += tokenizer(document)["input_ids"]
    expected = [
        stream[i : i + length] for i in range(0, len(stream), length) if i + length <= len(stream)
    ]
    windows = cut_windows(documents, tokenizer, length)
    assert windows.tolist() == expected
    assert (0 in stream) == (name == "llama")  # default special tokens, and no others


def test_a_text_shorter_than_one_window_is_refused_with_both_counts(llama_tokenizer):
    found = len(llama_tokenizer("a small house").input_ids)
    message = rf"at least one window of 64 tokens; found {found} tokens: give more text"
    with pytest.raises(InputError, match=message):
        cut_windows(["a small house"], llama_tokenizer, 64)


def test_a_text_of_exactly_one_window_is_one_window(llama_tokenizer):
    ids = llama_tokenizer("a small house near the river").input_ids
    windows = cut_windows(["a small house near the river"], llama_tokenizer, len(ids))
    assert windows.tolist() == [ids]
