"""Items of named tasks: read from local files, refused with their place where they are wrong."""

import json
import re
from pathlib import Path
from typing import get_args

import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from normtweak_core.errors import InputError
from normtweak_core.evaluate.config import TaskName
from normtweak_core.evaluate.tasks import TASKS, read_items

DATA = Path(__file__).parents[2] / "data" / "tasks"


@pytest.mark.parametrize("task", TASKS)
def test_ten_items_of_each_task_are_read_in_order(task):
    lines = (DATA / task / "items.jsonl").read_text().splitlines()
    assert read_items(DATA, task) == [json.loads(line) for line in lines]
    assert len(lines) == 10


def test_files_are_read_in_the_order_of_their_names(tmp_path):
    for name, text in (("b", "two"), ("a", "one")):
        file = tmp_path / "lambada_openai" / f"{name}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"text": text}) + "\n\n")
    assert [item["text"] for item in read_items(tmp_path, "lambada_openai")] == ["one", "two"]


def test_a_missing_file_is_named(tmp_path):
    message = (
        f"evaluation.data must hold the items of piqa as {tmp_path}/piqa/*.jsonl; there is no such "
        "file: save the data set's evaluation split there, one JSON object a line"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        read_items(tmp_path, "piqa")


def test_a_line_ends_at_a_newline_only(tmp_path):
    (tmp_path / "lambada_openai").mkdir()
    text = "one\u2028two\x85three"
    row = json.dumps({"text": text}, ensure_ascii=False)
    (tmp_path / "lambada_openai" / "x.jsonl").write_text(row + "\n", encoding="utf-8")
    assert read_items(tmp_path, "lambada_openai") == [{"text": text}]


def test_bytes_that_are_no_text_are_told(tmp_path):
    (tmp_path / "piqa").mkdir()
    file = tmp_path / "piqa" / "x.jsonl"
    file.write_bytes(b'{"goal": "\xff"}')
    message = f"text file {file} must be UTF-8; byte 10 is not: convert the file"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        read_items(tmp_path, "piqa")


PIQA = {"goal": "g", "sol1": "a", "sol2": "b", "label": 0}
ARC = {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}


@pytest.mark.parametrize(
    ("task", "line", "said"),
    [
        ("piqa", "", "evaluation.data must hold items of piqa; the files in {0} are empty"),
        (
            "piqa",
            "{",
            "{0}/x.jsonl line 1 must be one JSON object; it is not valid JSON: Expecting property "
            "name enclosed in double quotes: check the file",
        ),
        ("piqa", "[]", "{0}/x.jsonl line 1 must be one JSON object; found a list"),
        (
            "piqa",
            json.dumps(PIQA | {"label": "0"}),
            "{0}/x.jsonl line 1 must have the field label of piqa's data set (int); found str",
        ),
        (
            "piqa",
            json.dumps({k: v for k, v in PIQA.items() if k != "sol2"}),
            "{0}/x.jsonl line 1 must have the field sol2 of piqa's data set (str); found nothing",
        ),
        (
            "hellaswag",
            json.dumps({"ctx_a": "a", "ctx_b": "b", "activity_label": "c", "endings": ["d"]}),
            "{0}/x.jsonl line 1 must have the field label of hellaswag's data set (str or int); "
            "found nothing",
        ),
        (
            "arc_easy",
            json.dumps(ARC | {"choices": {"text": ["a"], "label": ["A", "B"]}}),
            "{0}/x.jsonl line 1 must have choices with the lists text and label of one length; "
            'found {{"text": ["a"], "label": ["A", "B"]}}',
        ),
    ],
)
def test_a_line_that_is_no_item_is_told_with_its_place(task, line, said, tmp_path):
    folder = tmp_path / task
    folder.mkdir()
    (folder / "x.jsonl").write_text(line)
    with pytest.raises(InputError, match=f"^{re.escape(said.format(folder))}$"):
        read_items(tmp_path, task)


def test_a_recipe_can_name_exactly_the_tasks_there_are():
    assert list(get_args(TaskName)) == list(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_the_data_set_of_a_task_is_the_one_that_lm_eval_names(task):
    folder = Path(lm_eval.__file__).parent / "tasks" / TASKS[task].folder
    entry = TaskManager(include_path=folder, include_defaults=False).task_index[task]
    theirs = load_yaml(entry.yaml_path, resolve_func=False)
    name = theirs.get("dataset_name")
    assert TASKS[task].hub == theirs["dataset_path"] + (f":{name}" if name else "")
