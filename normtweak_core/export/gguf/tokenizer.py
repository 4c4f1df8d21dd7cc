"""The tokenizer of an export as GGUF describes one: byte-level BPE that splits like GPT-2.

Chat templates go along whatever the tokenizer is, since they are text.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf


def describe_tokenizer(folder: Path, vocab_size: int) -> dict[str, Any] | None:
    """Return tokens, types, merges and special ids of a folder's tokenizer.

    None for a folder without tokenizer.json, and for any other kind: a tokenizer that llama.cpp
    would run almost right is worse than none.

    Args:
        folder: The export.
        vocab_size: Rows of the embedding; ids without a token are called unused.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    if not _is_gpt2(stored) or _largest_id(stored) >= vocab_size:
        return None
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for token, i in stored["model"]["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for entry in stored["added_tokens"]:
        kind = gguf.TokenType.CONTROL if entry["special"] else gguf.TokenType.USER_DEFINED
        tokens[entry["id"]], types[entry["id"]] = entry["content"], kind
    merges = [m if isinstance(m, str) else " ".join(m) for m in stored["model"]["merges"]]
    ids = {content: i for i, content in enumerate(tokens)}
    settings = _settings(folder)
    bos, eos = (ids.get(_content(settings.get(key))) for key in ("bos_token", "eos_token"))
    return {
        "tokens": tokens,
        "types": types,
        "merges": merges,
        "bos": bos,
        "eos": eos,
        "add_bos": bos is not None and _first_special(stored) == tokens[bos],
    }


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any] | None) -> None:
    """Write the tokenizer's entries; without one the model takes and gives token ids."""
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer["tokens"])
    writer.add_token_types(tokenizer["types"])
    writer.add_token_merges(tokenizer["merges"])
    if tokenizer["bos"] is not None:
        writer.add_bos_token_id(tokenizer["bos"])
    if tokenizer["eos"] is not None:
        writer.add_eos_token_id(tokenizer["eos"])
    writer.add_add_bos_token(tokenizer["add_bos"])


def add_chat_templates(writer: gguf.GGUFWriter, templates: Mapping[str, str]) -> None:
    """Write chat templates: the default one, and beside it those with names, whose list comes last.

    Args:
        writer: Of the file.
        templates: By name; ``default`` is the one that is used where none is named.
    """
    keys = gguf.Keys.Tokenizer
    if "default" in templates:
        writer.add_string(keys.CHAT_TEMPLATE, templates["default"])
    names: list[str] = []
    for name in sorted(templates.keys() - {"default"}):
        plain = re.sub(r"[^A-Za-z0-9]", "_", name)  # as llama.cpp's own converter writes names
        while plain in names:
            plain += "_"
        names.append(plain)
        writer.add_string(keys.CHAT_TEMPLATE_N.format(name=plain), templates[name])
    if names:
        # Not `add_chat_template`: it goes through a set, so that equal models give other bytes.
        writer.add_array(keys.CHAT_TEMPLATES, names)


def _is_gpt2(stored: dict[str, Any]) -> bool:
    split, model = stored.get("pre_tokenizer") or {}, stored["model"]
    return (
        model.get("type") == "BPE"
        and not model.get("byte_fallback")
        and stored.get("normalizer") is None
        and split.get("type") == "ByteLevel"
        and split.get("use_regex", True)
        and not split.get("add_prefix_space", True)
        and bool(model["merges"])
    )


def _largest_id(stored: dict[str, Any]) -> int:
    return max([*stored["model"]["vocab"].values(), *(e["id"] for e in stored["added_tokens"])])


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _content(token: Any) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _first_special(stored: dict[str, Any]) -> str | None:
    """Return the special token that is put before a text, if one is."""
    single = (stored.get("post_processor") or {}).get("single") or [{}]
    return single[0].get("SpecialToken", {}).get("id")
