"""The address of a registered version."""

import re

from normtweak_core.errors import InputError

URI = re.compile(
    r"models:/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)"
    r"(?:/(?P<version>[1-9][0-9]*)|@(?P<alias>[A-Za-z0-9_-]+))"
)


def parse_uri(uri: str) -> tuple[str, str | None, str | None]:
    """Return name, version and alias of an address; one of the last two is None.

    Raises:
        InputError: It is no address of a version.
    """
    match = URI.fullmatch(uri)
    if match is None:
        raise InputError(
            "a version is written models:/NAME/VERSION or models:/NAME@ALIAS, such as "
            f"models:/my-model/3; found {uri!r}."
        )
    return match["name"], match["version"], match["alias"]
