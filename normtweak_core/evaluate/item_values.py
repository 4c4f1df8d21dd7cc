"""Whether lm-eval can score an item of a named task: what it does with each field, checked before.

lm-eval looks a label up only after the model has answered. One that is out of range counts as wrong
without a word (``label: -1``, as test splits of the hub hold), others end in a KeyError, IndexError
or ValueError; an answer without text has no length to divide its likelihood by.
"""

import re
from collections.abc import Callable
from typing import Any

from normtweak_core.errors import InputError
from normtweak_core.paths import shown

BLANK = "_"  # of winogrande: what the options are filled in for
# What lm-eval takes out of an ending of hellaswag.
BRACKETS = re.compile(r"\[.*?\]")


def with_usable_values(task: str, item: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of an item that lm-eval reads, each of one type in all items.

    Args:
        task: Name of the task.
        item: Its fields are there and of the right types.
        where: The place of the item, for a message.

    Raises:
        InputError: A field holds what cannot be scored.
    """

    def require(holds: bool, field: str, required: str, found: object) -> None:
        if not holds:
            raise InputError(
                f"{where}: {field} must {required}",
                found=f"found {shown(found)}",
                remedy="correct the item or leave it out",
            )

    return READERS[task](item, require)


Require = Callable[[bool, str, str, object], None]


def _lambada(item: dict[str, Any], require: Require) -> dict[str, Any]:
    *before, last = item["text"].split(" ")
    good = bool(" ".join(before).strip()) and bool(last.strip())
    require(good, "text", "end in a space and the word that is to be guessed", item["text"])
    return {"text": item["text"]}


def _hellaswag(item: dict[str, Any], require: Require) -> dict[str, Any]:
    endings = item["endings"]
    _require_answers("endings", endings, require, lambda text: BRACKETS.sub("", text))
    text = str(item["label"])
    good = text.isascii() and text.isdecimal() and int(text) < len(endings)
    required = f"be the number of one of the {len(endings)} endings, from 0"
    require(good and not isinstance(item["label"], bool), "label", required, item["label"])
    kept = {field: item[field] for field in ("ctx_a", "ctx_b", "activity_label", "endings")}
    return kept | {"label": str(int(text))}


def _piqa(item: dict[str, Any], require: Require) -> dict[str, Any]:
    for field in ("sol1", "sol2"):
        _require_text(field, item[field], require)
    _require_zero_or_one(item, require)
    return {field: item[field] for field in ("goal", "sol1", "sol2", "label")}


def _winogrande(item: dict[str, Any], require: Require) -> dict[str, Any]:
    sentence = item["sentence"]
    good = bool(sentence.partition(BLANK)[2].strip())
    require(good, "sentence", f"hold {BLANK} and text behind it", sentence)
    for field in ("option1", "option2"):
        _require_text(field, item[field], require)
    require(item["answer"] in ("1", "2"), "answer", "be 1 or 2", item["answer"])
    return {field: item[field] for field in ("sentence", "option1", "option2", "answer")}


def _boolq(item: dict[str, Any], require: Require) -> dict[str, Any]:
    _require_zero_or_one(item, require)
    return {field: item[field] for field in ("question", "passage", "label")}


def _arc(item: dict[str, Any], require: Require) -> dict[str, Any]:
    return {"question": item["question"]} | _lettered(item, item["answerKey"], require)


def _openbookqa(item: dict[str, Any], require: Require) -> dict[str, Any]:
    key = item["answerKey"].lstrip()  # as lm-eval does, here alone
    return {"question_stem": item["question_stem"]} | _lettered(item, key, require)


def _lettered(item: dict[str, Any], key: str, require: Require) -> dict[str, Any]:
    texts, labels = item["choices"]["text"], item["choices"]["label"]
    _require_answers("choices.text", texts, require)
    good = all(isinstance(label, str) for label in labels) and len(set(labels)) == len(labels)
    require(good, "choices.label", "hold a different text for each choice", labels)
    require(key in labels, "answerKey", f"be one of {', '.join(labels)}", item["answerKey"])
    return {"choices": {"text": texts, "label": labels}, "answerKey": item["answerKey"]}


def _require_zero_or_one(item: dict[str, Any], require: Require) -> None:
    label = item["label"]
    good = not isinstance(label, bool) and label in (0, 1)
    require(good, "label", "be 0 or 1", label)


def _require_text(field: str, text: str, require: Require) -> None:
    require(bool(text.strip()), field, "be text that is not blank", text)


def _require_answers(
    field: str, texts: list[Any], require: Require, read: Callable[[str], str] = str
) -> None:
    require(len(texts) >= 2, field, "hold two answers or more", texts)
    require(all(isinstance(text, str) for text in texts), field, "hold texts alone", texts)
    for text in texts:
        require(bool(read(text).strip()), field, "hold no answer that is blank", text)


READERS: dict[str, Callable[[dict[str, Any], Require], dict[str, Any]]] = {
    "lambada_openai": _lambada,
    "hellaswag": _hellaswag,
    "piqa": _piqa,
    "winogrande": _winogrande,
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "openbookqa": _openbookqa,
    "boolq": _boolq,
}
