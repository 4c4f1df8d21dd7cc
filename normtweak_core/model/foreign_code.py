"""Code that a model folder brings along: never executed, and refused where it is needed; no torch.

transformers asks on the terminal whether to run it, wherever it is not told `trust_remote_code`.
"""

import json
from pathlib import Path
from typing import Any

from normtweak_core.errors import InputError

AUTO_MAP = "auto_map"  # of a config: which class of the folder's Python files is to be run
# A tokenizer's own settings; of config.json the one entry that concerns it (what else is there is
# looked at where the model is, since transformers may have code of its own for that).
PLACES = {"tokenizer_config.json": None, "config.json": "AutoTokenizer"}


def refuse_foreign_tokenizer(folder: Path) -> None:
    """Accept a tokenizer that runs on the code in transformers, from its files alone.

    Files that are no JSON objects are somebody else's to refuse.

    Raises:
        InputError: One names code in the folder; the message says which file and entry.
    """
    for name, entry in PLACES.items():
        named = _auto_map(folder / name)
        if entry is not None:
            named = named.get(entry) if isinstance(named, dict) else None
        if named:
            key = AUTO_MAP if entry is None else f"{AUTO_MAP}.{entry}"
            raise InputError(
                f"a tokenizer must run on the code in transformers; {folder / name} has {key}: "
                f"{_first_class(named)}, code of its own, which is never executed here. Convert "
                "the tokenizer to a tokenizer.json that opens without trust_remote_code and remove "
                "the entry, or choose another model."
            )


def _auto_map(path: Path) -> Any:
    """Return the entry of a file, or None."""
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return settings.get(AUTO_MAP) if isinstance(settings, dict) else None


def _first_class(named: Any) -> str:
    """Return a class that an entry names, whatever its layout: text, list, or lists by name."""
    while not isinstance(named, str):
        parts = list(named.values()) if isinstance(named, dict) else named
        if not isinstance(parts, list) or not any(parts):
            return json.dumps(named)
        named = next(part for part in parts if part)
    return named
