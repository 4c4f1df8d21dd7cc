"""Which named tasks there are, and the files that hold their items.

The tasks, their prompts and their metrics are EleutherAI's lm-eval's, under its names. The fields
of an item are those of the data set that lm-eval would download, so that a file saved from there
is read as it is.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normtweak_core.errors import InputError
from normtweak_core.evaluate.item_values import with_usable_values
from normtweak_core.given_files import numbered_lines, parse_json, read_utf8


@dataclass(frozen=True)
class NamedTask:
    """Where lm-eval keeps a task, and what an item of it looks like."""

    folder: str  # below lm-eval's own folder of tasks
    hub: str  # the data set that lm-eval takes its items from, and its configuration
    fields: dict[str, type | tuple[type, ...]]
    split: str = "validation"  # that lm-eval evaluates on
    lists: tuple[str, ...] = ()  # keys of `choices`, lists of one length


CHOICES = ("text", "label")
TASKS = {
    "lambada_openai": NamedTask(
        "lambada", "EleutherAI/lambada_openai:default", {"text": str}, "test"
    ),
    "hellaswag": NamedTask(
        "hellaswag",
        "Rowan/hellaswag",
        {"ctx_a": str, "ctx_b": str, "activity_label": str, "endings": list, "label": (str, int)},
    ),
    "piqa": NamedTask("piqa", "baber/piqa", {"goal": str, "sol1": str, "sol2": str, "label": int}),
    "winogrande": NamedTask(
        "winogrande",
        "allenai/winogrande:winogrande_xl",
        {"sentence": str, "option1": str, "option2": str, "answer": str},
    ),
    "arc_easy": NamedTask(
        "arc",
        "allenai/ai2_arc:ARC-Easy",
        {"question": str, "choices": dict, "answerKey": str},
        "test",
        CHOICES,
    ),
    "arc_challenge": NamedTask(
        "arc",
        "allenai/ai2_arc:ARC-Challenge",
        {"question": str, "choices": dict, "answerKey": str},
        "test",
        CHOICES,
    ),
    "openbookqa": NamedTask(
        "openbookqa",
        "allenai/openbookqa:main",
        {"question_stem": str, "choices": dict, "answerKey": str},
        "test",
        CHOICES,
    ),
    "boolq": NamedTask(
        "super_glue/boolq", "aps/super_glue:boolq", {"question": str, "passage": str, "label": int}
    ),
}


def items_sha256(data: Path, task: str) -> str:
    """Return one hash of the files that hold a task's items, in their order.

    Raises:
        InputError: There is none.
    """
    digest = hashlib.sha256()
    for file in item_files(data, task):
        digest.update(file.read_bytes())
        digest.update(b"\n")
    return digest.hexdigest()


def item_files(data: Path, task: str) -> list[Path]:
    """Return the files that hold a task's items, in the order in which they are read.

    Raises:
        InputError: There is none.
    """
    folder = data / task
    there = folder.iterdir() if folder.is_dir() else []
    files = sorted(path for path in there if path.suffix.lower() == ".jsonl")
    if not files:
        raise InputError(
            f"must hold the items of {task} as {folder}/*.jsonl",
            key="evaluation.data",
            found="there is no such file",
            remedy="save the data set's evaluation split there, one JSON object a line",
        )
    return files


def read_items(data: Path, task: str) -> list[dict[str, Any]]:
    """Return the items of a task, as `numbered_items` does, without their places."""
    return [item for _, _, item in numbered_items(data, task)]


def numbered_items(data: Path, task: str) -> list[tuple[Path, int, dict[str, Any]]]:
    """Return file, line and what `usable_item` returns of each item; nothing is downloaded.

    Raises:
        InputError: A file is missing or empty, or a line is no item that can be scored.
    """
    items = []
    for file in item_files(data, task):
        for number, line in numbered_lines(read_utf8(file)):
            item = parse_json(line, str(file), "check the file", number)
            items.append((file, number, usable_item(task, item, f"{file} line {number}")))
    if not items:
        raise InputError(
            f"must hold items of {task}",
            key="evaluation.data",
            found=f"the files in {data / task} are empty",
        )
    return items


def usable_item(task: str, item: Any, where: str) -> dict[str, Any]:
    """Return the fields of an item that lm-eval reads.

    Raises:
        InputError: It is no item of the task, or none that can be scored.
    """
    named = TASKS[task]
    if not isinstance(item, dict):
        raise InputError(f"{where} must be one JSON object; found a {type(item).__name__}")
    for field, kind in named.fields.items():
        if not isinstance(item.get(field), kind):
            found = type(item[field]).__name__ if field in item else "nothing"
            raise InputError(
                f"{where} must have the field {field} of {task}'s data set ({_said(kind)}); found "
                f"{found}"
            )
    if named.lists:
        found = [item["choices"].get(key) for key in named.lists]
        if not all(isinstance(x, list) and len(x) == len(found[0]) > 0 for x in found):
            raise InputError(
                f"{where} must have choices with the lists {' and '.join(named.lists)} of one "
                f"length; found {json.dumps(item['choices'])[:80]}"
            )
    return with_usable_values(task, item, where)


def _said(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(one.__name__ for one in kinds)
