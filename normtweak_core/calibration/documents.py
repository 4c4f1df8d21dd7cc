"""Text files as documents; no torch, so that a bad file is known before anything heavy starts."""

from pathlib import Path

from normtweak_core.errors import InputError
from normtweak_core.given_files import numbered_lines, parse_json, read_utf8


def read_documents(path: Path) -> list[str]:
    """Return the documents of a text file, as `numbered_documents` does, without their lines."""
    return [document for _, document in numbered_documents(path)]


def numbered_documents(path: Path) -> list[tuple[int, str]]:
    r"""Return the documents of a text file and the lines they begin in, in file order.

    A ``.txt`` file is one document. A ``.jsonl`` file is one document a line, in the field
    ``text``; lines end at ``\n`` only (a JSON string may hold other separators), blank lines are
    skipped. Names may end in capitals.

    Raises:
        InputError: The file is missing, cannot be read, is neither kind, is not UTF-8, holds no
            text, or a line is not a JSON object with a string ``text``.
    """
    kind = path.suffix.lower()
    if kind not in (".txt", ".jsonl"):
        raise InputError(f"a text file must end in .txt or .jsonl; found {path}")
    if not path.is_file():
        raise InputError(f"text file {path} does not exist: give the path of a .txt or .jsonl file")
    text = read_utf8(path)
    documents = [(1, text)] if kind == ".txt" else _json_documents(text, path)
    if not any(document.strip() for _, document in documents):
        raise InputError(f"text file {path} holds no text: give a file with at least one document")
    return documents


def _json_documents(text: str, path: Path) -> list[tuple[int, str]]:
    documents = []
    for number, line in numbered_lines(text):
        row = parse_json(line, str(path), "check the file", number)
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise InputError(
                f'{path} line {number} must be an object with a string field "text"; found {found}'
            )
        documents.append((number, row["text"]))
    return documents
