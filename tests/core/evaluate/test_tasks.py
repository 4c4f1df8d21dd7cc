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
    rows = [json.loads(line) for line in lines]
    read = read_items(DATA, task)
    for item, row in zip(read, rows, strict=True):
        assert item == {field: row[field] for field in TASKS[task].fields} | (
            {"label": str(row["label"])} if task == "hellaswag" else {}
        )
    assert len(read) == 10


def test_files_are_read_in_the_order_of_their_names(tmp_path):
    for name, text in (("b.jsonl", "a two"), ("a.JSONL", "a one")):
        file = tmp_path / "lambada_openai" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("\ufeff" + json.dumps({"text": text}) + "\r\n\n")
    assert [item["text"] for item in read_items(tmp_path, "lambada_openai")] == ["a one", "a two"]


def test_a_missing_file_is_named(tmp_path):
    message = (
        f"evaluation.data must hold the items of piqa as {tmp_path}/piqa/*.jsonl; there is no such "
        "file: save the data set's evaluation split there, one JSON object a line"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        read_items(tmp_path, "piqa")


def test_a_line_ends_at_a_newline_only(tmp_path):
    (tmp_path / "lambada_openai").mkdir()
    text = "one\u2028two\x85three four"
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


HELLASWAG = {
    "ctx_a": "a", "ctx_b": "", "activity_label": "c", "endings": ["d", "e", "f"], "label": 2,
}  # fmt: skip
WINOGRANDE = {"sentence": "the _ was big", "option1": "a", "option2": "b", "answer": "1"}
BOOK = {"question_stem": "q", "choices": ARC["choices"], "answerKey": " B"}
BOOLQ = {"question": "q", "passage": "p", "label": 1}
GOOD = {
    "lambada_openai": {"text": "a word"},
    "hellaswag": HELLASWAG,
    "piqa": PIQA,
    "winogrande": WINOGRANDE,
    "arc_easy": ARC,
    "arc_challenge": ARC,
    "openbookqa": BOOK,
    "boolq": BOOLQ,
}
NUMBER = "label must be the number of one of the 3 endings, from 0; found "
ENDINGS = "endings must hold no answer that is blank; found "
ZERO_OR_ONE = "label must be 0 or 1; found "
UNUSABLE = [
    ("lambada_openai", {"text": "word"}, "text must end in a space and the word that is to be gu"),
    ("lambada_openai", {"text": "a word "}, "text must end in a space and the word that is to be"),
    ("lambada_openai", {"text": " word"}, "text must end in a space and the word that is to be "),
    ("hellaswag", {"label": -1}, f"{NUMBER}-1"),
    ("hellaswag", {"label": "-1"}, f"{NUMBER}'-1'"),
    ("hellaswag", {"label": ""}, f"{NUMBER}''"),
    ("hellaswag", {"label": "3"}, f"{NUMBER}'3'"),
    ("hellaswag", {"label": True}, f"{NUMBER}True"),
    ("hellaswag", {"endings": ["d", "e", " "]}, f"{ENDINGS}' '"),
    ("hellaswag", {"endings": ["d", "[step] ", "f"]}, f"{ENDINGS}'[step] '"),
    ("hellaswag", {"endings": ["d", 1, "f"]}, "endings must hold texts alone; found ['d', 1, 'f']"),
    ("hellaswag", {"endings": ["d"], "label": 0}, "endings must hold two answers or more; found "),
    ("piqa", {"label": -1}, f"{ZERO_OR_ONE}-1"),
    ("piqa", {"label": 2}, f"{ZERO_OR_ONE}2"),
    ("piqa", {"label": False}, f"{ZERO_OR_ONE}False"),
    ("piqa", {"sol2": ""}, "sol2 must be text that is not blank; found ''"),
    ("winogrande", {"answer": ""}, "answer must be 1 or 2; found ''"),
    ("winogrande", {"answer": "3"}, "answer must be 1 or 2; found '3'"),
    ("winogrande", {"sentence": "none"}, "sentence must hold _ and text behind it; found 'none'"),
    ("winogrande", {"sentence": "the _"}, "sentence must hold _ and text behind it; found 'the _'"),
    ("winogrande", {"option1": " "}, "option1 must be text that is not blank; found ' '"),
    ("arc_easy", {"answerKey": "C"}, "answerKey must be one of A, B; found 'C'"),
    ("arc_easy", {"answerKey": " A"}, "answerKey must be one of A, B; found ' A'"),
    ("arc_challenge", {"answerKey": ""}, "answerKey must be one of A, B; found ''"),
    (
        "arc_challenge",
        {"choices": {"text": ["a", ""], "label": ["A", "B"]}},
        "choices.text must hold no answer that is blank; found ''",
    ),
    (
        "arc_easy",
        {"choices": {"text": ["a", "b"], "label": ["A", "A"]}},
        "choices.label must hold a different text for each choice; found ['A', 'A']",
    ),
    (
        "arc_easy",
        {"choices": {"text": ["a", "b"], "label": [1, 2]}},
        "choices.label must hold a different text for each choice; found [1, 2]",
    ),
    (
        "openbookqa",
        {"choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"},
        "choices.text must hold two answers or more; found ['a']",
    ),
    ("openbookqa", {"answerKey": "E"}, "answerKey must be one of A, B; found 'E'"),
    ("boolq", {"label": -1}, f"{ZERO_OR_ONE}-1"),
    ("boolq", {"label": True}, f"{ZERO_OR_ONE}True"),
]


@pytest.mark.parametrize(("task", "changes", "said"), UNUSABLE)
def test_an_item_that_cannot_be_scored_is_refused_with_its_line(task, changes, said, tmp_path):
    file = tmp_path / task / "x.jsonl"
    file.parent.mkdir()
    file.write_text(f"{json.dumps(GOOD[task])}\n\n{json.dumps(GOOD[task] | changes)}\n")
    with pytest.raises(InputError) as refused:
        read_items(tmp_path, task)
    assert str(refused.value).startswith(f"{file} line 3: {said}")
    assert str(refused.value).endswith(": correct the item or leave it out")


@pytest.mark.parametrize("task", TASKS)
def test_an_item_may_hold_more_than_is_read(task, tmp_path):
    """Items of a data set are one table: fields that nobody reads may differ in kind."""
    file = tmp_path / task / "x.jsonl"
    file.parent.mkdir()
    more = [{"id": 1}, {"id": "b", "n": 10**400}, {}]
    file.write_text("".join(json.dumps(GOOD[task] | one) + "\n" for one in more))
    read = read_items(tmp_path, task)
    assert [list(item) for item in read] == [list(TASKS[task].fields)] * 3


def test_labels_of_hellaswag_may_be_numbers_or_texts(tmp_path):
    (tmp_path / "hellaswag").mkdir()
    rows = [json.dumps(HELLASWAG | {"label": label}) for label in (2, "2", "0")]
    (tmp_path / "hellaswag" / "x.jsonl").write_text("\n".join(rows))
    assert [item["label"] for item in read_items(tmp_path, "hellaswag")] == ["2", "2", "0"]


def test_a_recipe_can_name_exactly_the_tasks_there_are():
    assert list(get_args(TaskName)) == list(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_the_data_set_of_a_task_is_the_one_that_lm_eval_names(task):
    folder = Path(lm_eval.__file__).parent / "tasks" / TASKS[task].folder
    entry = TaskManager(include_path=folder, include_defaults=False).task_index[task]
    theirs = load_yaml(entry.yaml_path, resolve_func=False)
    name = theirs.get("dataset_name")
    assert TASKS[task].hub == theirs["dataset_path"] + (f":{name}" if name else "")
    assert TASKS[task].split == (theirs.get("test_split") or theirs["validation_split"])
