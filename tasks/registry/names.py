"""Names of registered models and of their versions, for recipes and for the registry; no MLflow."""

import re
from dataclasses import dataclass

from normtweak_core.errors import InputError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of what we register; others may be freer
ALIAS_PATTERN = r"^[A-Za-z0-9_-]+$"
REGISTERED = "models:"  # what the address of a version begins with
_ADDRESS = re.compile(
    r"models:/(?P<name>[^/@]+)(?:/(?P<version>[1-9][0-9]*)|@(?P<alias>[A-Za-z0-9_-]+))"
)


@dataclass(frozen=True)
class Address:
    """A registered version, by its number or by an alias."""

    name: str
    version: str | None = None
    alias: str | None = None

    def __str__(self) -> str:
        what = f"@{self.alias}" if self.alias else f"/{self.version}"
        return f"{REGISTERED}/{self.name}{what}"


def parse_address(text: str, alias_too: bool = True) -> Address:
    """Return the parts of the address of a version.

    Args:
        text: models:/NAME/VERSION or models:/NAME@ALIAS.
        alias_too: Whether it may be by an alias.

    Raises:
        InputError: It is no such address.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or not (alias_too or match["version"]):
        forms = "models:/NAME/VERSION" + (" or models:/NAME@ALIAS" if alias_too else "")
        raise InputError(
            f"a registered version is written {forms}, such as models:/my-model/3; found {text!r}."
        )
    return Address(**match.groupdict())


def require_names(name: str, alias: str, keys: tuple[str, str]) -> None:
    """Accept the name of a registered model and an alias.

    Raises:
        InputError: One is none.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputError(
            "must be letters, digits, dots, dashes and underscores",
            key=keys[0],
            found=f"found {name!r}",
            remedy="choose another",
        )
    if is_reserved_alias(alias) or not re.fullmatch(ALIAS_PATTERN, alias):
        raise InputError(
            "must be letters, digits, '_' and '-', and neither latest nor v and a number",
            key=keys[1],
            found=f"found {alias!r}",
            remedy="choose another",
        )


def is_reserved_alias(alias: str) -> bool:
    """Tell whether MLflow keeps an alias for itself: latest, or v and a number."""
    return re.fullmatch(r"latest|v\d+", alias.lower()) is not None
