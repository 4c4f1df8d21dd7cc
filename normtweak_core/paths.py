"""The one way from what a person gives as a path to a path; no torch."""

import os
from pathlib import Path

from normtweak_core.errors import InputError

SHOWN = 80  # characters of a value that is told


def given_path(value: str | os.PathLike[str], key: str) -> Path:
    """Return a path that a person has given, ``~`` expanded, which need not exist.

    What is returned can be asked about: no call on it fails but for what lies there.

    Args:
        value: What was given.
        key: The recipe key, option or variable that holds it, for a message.

    Raises:
        InputError: It is empty, is no text, names the home of a user there is none of, is longer
            than the file system allows, or lies where this user may not look.
    """
    text = os.fspath(value)
    found = f"found {shown(text)}"
    if not text:
        raise InputError(
            "must be a path", key=key, found="found an empty text", remedy="name a file or a folder"
        )
    if "\0" in text or not _encodes(text):
        raise InputError(
            "must be a path of UTF-8 characters", key=key, found=found, remedy="rename it"
        )
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(
            "must begin with the home folder of a user there is",
            key=key,
            found=found,
            remedy=f"write the path out, or ./{shown(text)[1:-1]} for a folder of that name",
        ) from error
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if not path.is_absolute() and not _has_a_working_folder():
            raise InputError(
                "is a path from the working folder, which must exist",
                key=key,
                found=f"{found}, and the folder was removed",
                remedy="change to a folder that is there",
            ) from error
    except OSError as error:
        raise InputError(
            "must be a path that the file system takes and this user may look at",
            key=key,
            found=f"{found}: {error.strerror}",
            remedy="check the path",
        ) from error
    return path


def shown(value: object) -> str:
    """Return a value as it is told in a message: as Python writes it, its end cut off if long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_a_working_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True
