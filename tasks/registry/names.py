"""Names a registered model and its alias may have, for recipes and for the registry; no MLflow."""

import re

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
ALIAS_PATTERN = r"^[A-Za-z0-9_-]+$"


def is_reserved_alias(alias: str) -> bool:
    """Tell whether MLflow keeps an alias for itself: latest, or v and a number."""
    return re.fullmatch(r"latest|v\d+", alias.lower()) is not None
