"""How many token ids a tokenizer's files can give, and how many the embedding has; no torch."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normtweak_core.given_files import read_json_object
from normtweak_core.model.architecture import read_config
from normtweak_core.model.checkpoint import stored_tensors

REMEDY = "save the tokenizer again with save_pretrained"
# Lists of special tokens in the settings of a tokenizer; single ones are called ..._token.
SPECIAL_LISTS = ("additional_special_tokens", "extra_special_tokens")


def embedding_rows(folder: Path) -> int:
    """Return the rows of the model's input embedding: ids from there on are none of its tokens."""
    config = read_config(folder)
    for part in (config, config.get("text_config") or {}):
        if isinstance(rows := part.get("vocab_size"), int):
            return rows
    named = {name: t.shape for name, t in stored_tensors(folder).items() if len(t.shape) == 2}
    found = [shape for name, shape in named.items() if "emb" in name or "wte" in name]
    return max(max(found or named.values(), key=math.prod))


def most_token_ids(folder: Path) -> int:
    """Return an upper bound of the ids that a tokenizer gives, from its files alone.

    Tokens that its settings name and its vocabulary lacks are added when it is opened, behind all
    others. A class that adds tokens of its own accord is not seen through here.

    Raises:
        InputError: One of the files is no JSON object.
    """
    ids: dict[str, int] = {}
    if (folder / "tokenizer.json").is_file():
        stored = read_json_object(folder / "tokenizer.json", REMEDY)
        ids |= _vocabulary(stored.get("model") or {})
        ids |= {one["content"]: one["id"] for one in stored.get("added_tokens") or []}
    for name in ("vocab.json", "added_tokens.json"):
        if (folder / name).is_file():
            found = read_json_object(folder / name, REMEDY)
            ids |= {token: value for token, value in found.items() if isinstance(value, int)}
    named: set[str] = set()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            settings = read_json_object(folder / name, REMEDY)
            for value, token in (settings.get("added_tokens_decoder") or {}).items():
                ids[str(_content(token))] = int(value)
            named |= set(_special_tokens(settings))
    return max(ids.values(), default=-1) + 1 + len(named - ids.keys())


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    entries = model.get("vocab") or {}
    if isinstance(entries, list):  # of a unigram model: a piece and its score each
        return {str(entry[0]): number for number, entry in enumerate(entries)}
    return entries


def _special_tokens(settings: dict[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        several = value.values() if isinstance(value, dict) else value
        if key in SPECIAL_LISTS and isinstance(value, list | dict):
            yield from (str(_content(token)) for token in several)
        elif key.endswith("_token") and isinstance(_content(value), str):
            yield _content(value)


def _content(token: Any) -> Any:
    """Return the text of a token, which may be written with its settings."""
    return token.get("content") if isinstance(token, dict) else token
