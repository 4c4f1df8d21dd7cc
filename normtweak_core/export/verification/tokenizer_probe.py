"""What the tokenizer of an export must answer: as the one of the float model does.

Questions and answers lie side by side in the manifest, and `reader.py` asks them again of the
exported folder: a text, the same with special tokens in it, the whole vocabulary, and a
conversation through each chat template. A template may tell the date, so that the clock that it
reads stands still.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from normtweak_core.model.tokenizer import load_tokenizer
from normtweak_core.model.tokenizer_files import tokenizer_files

PROBE_TEXT = "The quick brown fox (aged 7) said: déjà vu?\n\tYes, 42 times — 世界 🙂"
MARKS = 32  # special and added tokens that the second text holds at most
CONVERSATION = {
    "messages": [
        {"role": "user", "content": "What is 6 times 7?"},
        {"role": "assistant", "content": "42."},
        {"role": "user", "content": " And  half of it?\n"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "halve",
                "description": "Half of a number.",
                "parameters": {
                    "type": "object",
                    "properties": {"number": {"type": "number", "description": "Which."}},
                    "required": ["number"],
                },
            },
        }
    ],
    "documents": [{"title": "Numbers", "text": "Half of 42 is 21."}],
    # Put before a template, whose own name for the time of day it takes.
    "clock": "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro %}",
}


def tokenizer_probe(folder: Path) -> dict[str, Any] | None:
    """Return questions and answers of the tokenizer in a folder; None where there is none.

    Raises:
        InputError: It cannot be opened.
    """
    if not tokenizer_files(folder):
        return None
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(PROBE_TEXT)["input_ids"]
    marks = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})[:MARKS]
    marked_text = f" {PROBE_TEXT[:9]} ".join(["", *marks, ""])
    marked_ids = tokenizer(marked_text)["input_ids"]
    templates = chat_templates(tokenizer)
    return {
        "text": PROBE_TEXT,
        "ids": ids,
        "decoded": tokenizer.decode(ids),
        "marked_text": marked_text,
        "marked_ids": marked_ids,
        "unmarked": tokenizer.decode(marked_ids, skip_special_tokens=True),
        "special_tokens": {k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items())},
        "vocabulary_sha256": _sha256(sorted(tokenizer.get_vocab().items())),
        "added_tokens_sha256": _sha256(
            sorted((i, repr(token)) for i, token in tokenizer.added_tokens_decoder.items())
        ),
        "conversation": CONVERSATION,
        "chat_templates": {name: _sha256(text) for name, text in templates.items()},
        "chats": {name: _chat(tokenizer, name, text) for name, text in templates.items()},
    }


def chat_templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the chat templates of a tokenizer by name; the one without a name is the default."""
    templates = tokenizer.chat_template or {}
    return dict(
        sorted(({"default": templates} if isinstance(templates, str) else templates).items())
    )


def _chat(tokenizer: PreTrainedTokenizerBase, name: str, template: str) -> str:
    """Return the conversation as a template writes it, or the kind of error that it raises."""
    more = {} if name == "default" else {k: CONVERSATION[k] for k in ("tools", "documents")}
    try:
        return tokenizer.apply_chat_template(
            CONVERSATION["messages"],
            chat_template=CONVERSATION["clock"] + template,
            add_generation_prompt=True,
            tokenize=False,
            **more,
        )
    except Exception as error:  # a template is a program of its own, which may refuse the roles
        return type(error).__name__


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
