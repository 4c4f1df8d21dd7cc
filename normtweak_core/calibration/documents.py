"""Text files as documents; no torch, so that a bad file is known before anything heavy starts."""

import json
from pathlib import Path

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
    text = read_utf8(path)
    documents = [text] if path.suffix == ".txt" else _json_documents(text, path)
    if not any(document.strip() for document in documents):
        raise InputError(f"text file {path} holds no text: give a file with at least one document")
    return documents


def read_utf8(path: Path) -> str:
    """Return the text of a file.

    Raises:
        InputError: The file cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"text file {path} must be UTF-8; byte {error.start} is not: convert the file"
        ) from error
    except OSError as error:
        raise InputError(f"text file {path} cannot be read: {error.strerror}") from error


def numbered_lines(text: str) -> list[tuple[int, str]]:
    r"""Return the lines that are not blank with their numbers; lines end at ``\n`` only."""
    lines = enumerate(text.split("\n"), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def _json_documents(text: str, path: Path) -> list[str]:
    documents = []
    for number, line in numbered_lines(text):
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
