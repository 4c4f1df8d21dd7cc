"""Text files as documents, and documents as windows of token ids.

Calibration and perplexity read text through this file, so that both mean the same thing by it.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from normtweak_core.errors import InputError


def read_documents(path: Path) -> list[str]:
    r"""Return the documents of a text file, in file order.

    A ``.txt`` file is one document. A ``.jsonl`` file is one document a line, in the field
    ``text``; lines end at ``\n`` only (a JSON string may hold other separators), blank lines are
    skipped.

    Raises:
        InputError: The file is missing, cannot be read, is neither kind, is not UTF-8, holds no
            text, or a line is not a JSON object with a string ``text``.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"a text file must end in .txt or .jsonl; found {path}")
    if not path.is_file():
        raise InputError(f"text file {path} does not exist: give the path of a .txt or .jsonl file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"text file {path} must be UTF-8; byte {error.start} is not: convert the file"
        ) from error
    except OSError as error:
        raise InputError(f"text file {path} cannot be read: {error.strerror}") from error
    documents = [text] if path.suffix == ".txt" else _json_documents(text, path)
    if not any(document.strip() for document in documents):
        raise InputError(f"text file {path} holds no text: give a file with at least one document")
    return documents


def _json_documents(text: str, path: Path) -> list[str]:
    documents = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path} line {number} must be one JSON object; it is not valid JSON: {error.msg}"
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise InputError(
                f'{path} line {number} must be an object with a string field "text"; found {found}'
            )
        documents.append(row["text"])
    return documents


def tokenize(documents: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of each document, with the tokenizer's default special tokens."""
    # verbose=False: documents longer than the context are expected here, they are cut below.
    return tokenizer(documents, verbose=False)["input_ids"] if documents else []


def windows_of(ids: Iterable[list[int]], length: int) -> Int64[Tensor, "windows length"]:
    """Return consecutive windows of the concatenated ids; an incomplete last one is dropped."""
    stream = torch.tensor([token for document in ids for token in document], dtype=torch.int64)
    return stream[: stream.numel() // length * length].reshape(-1, length)


def cut_windows(
    documents: list[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> Int64[Tensor, "windows length"]:
    """Return all windows of the documents: tokenized one by one, concatenated, cut.

    Args:
        documents: Texts, in file order.
        tokenizer: Adds its default special tokens to every document.
        length: Tokens per window.

    Raises:
        InputError: The documents hold fewer tokens than one window.
    """
    ids = tokenize(documents, tokenizer)
    windows = windows_of(ids, length)
    if not len(windows):
        raise InputError(
            f"the text must fill at least one window of {length} tokens; found "
            f"{sum(map(len, ids))} tokens: give more text or a smaller length"
        )
    return windows
