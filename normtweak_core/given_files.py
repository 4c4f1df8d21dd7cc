"""Text and JSON files that a person gives: read in one way, refused with file and line; no torch.

Text is UTF-8, with or without a byte-order mark. JSON is what Python's reader takes, Infinity and
NaN included, which configs of transformers hold.
"""

import json
import re
from pathlib import Path
from typing import Any

from normtweak_core.errors import InputError
from normtweak_core.paths import shown

# Beginnings of text in other encodings, as editors on Windows write it.
OTHER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
HALF_A_PAIR = re.compile("[\ud800-\udfff]")
ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
LONG_NUMBER = re.compile(r"\d{4301}")  # more digits than Python turns into a number


def read_utf8(path: Path, what: str = "text file") -> str:
    """Return the text of a file, without its byte-order mark.

    Raises:
        InputError: The file cannot be read or is not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}") from error
    if other := OTHER_MARKS.get(raw[:2]):
        raise InputError(f"{what} {path} must be UTF-8; it is {other}: convert the file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} {path} must be UTF-8; byte {error.start} is not: convert the file"
        ) from error


def numbered_lines(text: str) -> list[tuple[int, str]]:
    r"""Return the lines that are not blank with their numbers; lines end at ``\n`` only."""
    lines = enumerate(text.split("\n"), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def parse_json(text: str, place: str, remedy: str, line: int | None = None) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The text.
        place: The file, for a message.
        remedy: What to do about a text that is none, for a message.
        line: The line of the file that the text is; None: it is all of the file.

    Raises:
        InputError: It is no JSON, is nested deeper or has a longer number than can be read, or
            holds half a surrogate pair, which is no character.
    """

    def refused(found: str, at: int) -> InputError:
        where = f"{place} line {at if line is None else line}"
        required = "must be JSON" if line is None else "must be one JSON object"
        return InputError(f"{where} {required}; {found}: {remedy}")

    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise refused(f"it is not valid JSON: {error.msg}", error.lineno) from error
    except RecursionError as error:
        raise refused("it is nested too deeply to be read", 1) from error
    except ValueError as error:  # a number of more digits than Python reads
        found = LONG_NUMBER.search(text)
        at = 1 if found is None else text.count("\n", 0, found.start()) + 1
        raise refused("it has a number of more than 4300 digits", at) from error
    if ESCAPED_HALF.search(text) and (half := _half_a_pair(value)) is not None:
        escaped = ESCAPED_HALF.finditer(text)
        at = next(text.count("\n", 0, one.start()) + 1 for one in escaped)
        raise refused(f"it holds half of a surrogate pair, which is no character, in {half}", at)
    return value


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        InputError: It cannot be read, or is no JSON object.
    """
    value = parse_json(read_utf8(path, "the file"), str(path), remedy)
    if not isinstance(value, dict):
        raise InputError(f"{path} must be a JSON object; it is a {type(value).__name__}: {remedy}")
    return value


def _half_a_pair(value: Any) -> str | None:
    """Return, as it is told, a string within a value that does not encode; None: there is none."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str) and HALF_A_PAIR.search(one):
            return shown(one)
        if isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one
    return None
