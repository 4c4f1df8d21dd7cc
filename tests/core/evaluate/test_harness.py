"""Tasks scored on a model in memory: lm-eval's own numbers, item by item."""

import copy
import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.evaluate.harness import _undisturbed, score_task
from normtweak_core.evaluate.tasks import TASKS, read_items
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.source import reference_folder
from tests.children import QUICK
from tests.sampled import sampled

DATA = Path(__file__).parents[2] / "data" / "tasks"
SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture(scope="module")
def llama():
    folder = reference_folder("llama")
    return load_causal_lm(folder, torch.float32, "cpu"), AutoTokenizer.from_pretrained(folder)


def answers(task: str, item: dict) -> tuple[list[tuple[str, str]], int]:
    """What lm-eval asks of an item of these tasks, written down again: context and continuation."""
    if task == "piqa":
        context = f"Question: {item['goal']}\nAnswer:"
        return [(context, " " + item["sol1"]), (context, " " + item["sol2"])], item["label"]
    if task == "winogrande":
        before, after = item["sentence"].split("_")
        both = [(before + item[option], " " + after.strip()) for option in ("option1", "option2")]
        return both, int(item["answer"]) - 1
    if task == "boolq":
        context = f"{item['passage']}\nQuestion: {item['question']}?\nAnswer:"
        return [(context, " no"), (context, " yes")], item["label"]
    words = item["text"].split(" ")
    return [(" ".join(words[:-1]), " " + words[-1])], 0


def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    whole = tokenizer(context + continuation)["input_ids"]
    start = len(tokenizer(context)["input_ids"])
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(logits[i - 1, whole[i]].item() for i in range(start, len(whole)))


@pytest.mark.parametrize("task", ["piqa", "winogrande", "boolq", "lambada_openai"])
def test_scores_follow_from_the_likelihoods_of_the_answers(task, llama):
    items = read_items(DATA, task)
    found = score_task(*llama, task, items)
    assert found.num_items == 10
    for number, item in enumerate(items):
        asked, right = answers(task, item)
        likelihoods = [log_likelihood(*llama, *one) for one in asked]
        if task == "lambada_openai":
            assert found.values["loglikelihood"][number] == pytest.approx(likelihoods[0], abs=1e-3)
        else:
            best = max(range(len(asked)), key=likelihoods.__getitem__)
            assert found.values["acc"][number] == float(best == right)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_answers_its_ten_items(task, llama):
    shown = []
    found = score_task(*llama, task, read_items(DATA, task), progress=lambda *at: shown.append(at))
    assert found.num_items == 10
    assert set(found.values["acc"]) <= {0.0, 1.0}
    assert found.version
    done, total = shown[-1]
    assert done == total == max(total for _, total in shown)


def test_only_the_first_items_are_asked(llama):
    items = read_items(DATA, "piqa")
    few = score_task(*llama, "piqa", items, max_items=3)
    assert few.values["acc"] == score_task(*llama, "piqa", items).values["acc"][:3]


def test_global_random_generators_are_left_alone(llama):
    np.random.seed(5), torch.manual_seed(5)
    expected = (np.random.rand(), torch.rand(1).item())
    np.random.seed(5), torch.manual_seed(5)
    score_task(*llama, "piqa", read_items(DATA, "piqa"), max_items=2)
    assert (np.random.rand(), torch.rand(1).item()) == expected


def test_pythons_generator_is_where_it_was():
    # By itself: the type checks of these tests draw from that generator as well.
    before = random.getstate()
    with _undisturbed():
        random.random()
    assert random.getstate() == before


def test_a_model_of_nan_is_refused(llama):
    model, tokenizer = llama
    kept = model.get_input_embeddings().weight.clone()
    try:
        model.get_input_embeddings().weight.fill_(math.nan)
        with pytest.raises(NonFiniteError, match="found NaN at item 0 of piqa"):
            score_task(model, tokenizer, "piqa", read_items(DATA, "piqa"), max_items=1)
    finally:
        model.get_input_embeddings().weight.copy_(kept)


def test_a_tokenizer_without_a_token_to_begin_with_is_refused(llama):
    model, tokenizer = llama
    bare = copy.deepcopy(tokenizer)
    bare.bos_token = bare.eos_token = None
    with pytest.raises(InputError, match="need a tokenizer with a BOS or an EOS token, which lm-e"):
        score_task(model, bare, "piqa", read_items(DATA, "piqa"), max_items=1)


def test_an_answer_longer_than_the_context_is_refused_before_any_is_scored(llama):
    items = read_items(DATA, "piqa")
    items[3] = items[3] | {"sol2": "again" + 600 * " again"}
    shown = []
    with pytest.raises(InputError) as refused:
        score_task(*llama, "piqa", items, progress=lambda *at: shown.append(at))
    length = len(llama[1](" " + items[3]["sol2"], add_special_tokens=False)["input_ids"])
    assert str(refused.value) == (
        "evaluation.data must hold answers that fit in the model's context of 512 tokens; one of "
        f"item 3 of piqa, counted from 0, has {length}: leave the item out of the files"
    )
    assert not shown


# lm-eval without any of our code: it loads model, tokenizer and files, and reports.
BY_ITSELF = """
import json, sys
from pathlib import Path
import lm_eval, yaml
from lm_eval.tasks import TaskManager
model, *tasks = sys.argv[1:]
for task in tasks:
    (found,) = Path(lm_eval.__file__).parent.joinpath("tasks").glob(f"*/{task}.yaml")
    file = str(Path(task, "items.jsonl").resolve())
    local = {
        "include": str(found), "task": f"local_{task}", "dataset_path": "json",
        "dataset_name": None, "dataset_kwargs": {"data_files": {"validation": file}},
        "validation_split": "validation", "test_split": None, "training_split": None,
    }
    Path("own", f"{task}.yaml").write_text(yaml.safe_dump(local))
found = lm_eval.simple_evaluate(
    model="hf", model_args={"pretrained": model, "dtype": "float32"},
    tasks=[f"local_{task}" for task in tasks], device="cpu", batch_size=16, bootstrap_iters=100,
    task_manager=TaskManager(include_path="own", include_defaults=False),
)
kept = {"samples": found["samples"], "results": found["results"]}
Path("found.json").write_text(json.dumps(kept, default=str))
"""
# The suite looks at the first items of LAMBADA and PIQA; `make tasks-test` at every one.
ITEMS = None if os.environ.get("NORMTWEAK_ALL_ITEMS") else 100
COMPARED = {
    "lambada_openai": "lambada/lambada_test.jsonl",
    "piqa": "piqa/valid.labelled.jsonl",
    "hellaswag": None,
    "arc_challenge": None,
}


def fits(tokenizer, line: str) -> bool:
    """Whether lm-eval can score an item at all: it asserts on answers longer than the context."""
    answers = [value for key, value in json.loads(line).items() if key.startswith("sol")]
    return all(len(tokenizer(" " + answer)["input_ids"]) <= 512 for answer in answers)


@pytest.fixture(scope="module")
def by_itself(tmp_path_factory, llama):
    """The folder of the items, and what lm-eval finds in a process of its own."""
    folder = tmp_path_factory.mktemp("by-itself")
    (folder / "own").mkdir()
    for task, file in COMPARED.items():
        real = None if file is None else SHARED / file
        # Without the shared data, LAMBADA and PIQA are compared on ten items as well.
        path = real if real and real.is_file() else DATA / task / "items.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()[:ITEMS]
        lines = [line for line in lines if fits(llama[1], line)]
        (folder / task).mkdir()
        (folder / task / "items.jsonl").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", QUICK + BY_ITSELF, str(reference_folder("llama")), *COMPARED],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("task", sampled(COMPARED))
def test_lm_eval_by_itself_finds_the_same_to_the_last_item(task, llama, by_itself):
    folder, found = by_itself
    theirs = sorted(found["samples"][f"local_{task}"], key=lambda sample: sample["doc_id"])
    ours = score_task(*llama, task, read_items(folder, task))
    assert ours.values["acc"] == [float(sample["acc"]) for sample in theirs]
    if task == "lambada_openai":
        expected = [sample["perplexity"] for sample in theirs]
        assert ours.values["loglikelihood"] == pytest.approx(expected, rel=1e-6)
    reported = found["results"][f"local_{task}"]
    for metric, estimate in ours.estimates().items():
        assert estimate.mean == pytest.approx(reported[f"{metric},none"], rel=1e-6)
        if metric != "perplexity":
            assert estimate.stderr == pytest.approx(reported[f"{metric}_stderr,none"], rel=1e-6)


# A home of the hub's libraries in which `datasets` once prepared the data set of a task.
COMMIT, OTHER = "a" * 40, "b" * 40
OFFLINE = """
import json, sys
import torch
from transformers import AutoTokenizer
from normtweak_core.errors import InputError
from normtweak_core.evaluate.harness import score_task
from normtweak_core.model.loading import load_causal_lm
folder, commits = sys.argv[1], sys.argv[2:]
model = load_causal_lm(__import__("pathlib").Path(folder), torch.float32, "cpu")
found = []
for commit in commits:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        found.append(score_task(model, tokenizer, "piqa", None, revision=commit).values)
    except InputError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def prepare(home, items):
    folder = home / "datasets" / "baber___piqa" / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    splits = {}
    for split in ("train", "validation"):
        rows = datasets.Dataset.from_list(items if split == "validation" else items[:1])
        rows.save_to_disk(home / split)
        shutil.copy(next((home / split).glob("*.arrow")), folder / f"piqa-{split}.arrow")
        splits[split] = {
            "name": split, "num_bytes": 1, "num_examples": len(rows), "dataset_name": "piqa",
        }  # fmt: skip
    info = {
        "config_name": "default", "dataset_name": "piqa", "builder_name": "parquet",
        "version": "0.0.0", "features": rows.features.to_dict(), "splits": splits,
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_items_from_the_hubs_cache_score_as_those_of_files_at_that_commit_alone(llama, tmp_path):
    items = read_items(DATA, "piqa")
    prepare(tmp_path, items)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", QUICK + OFFLINE, str(reference_folder("llama")), COMMIT, OTHER],
        env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    at_commit, elsewhere = json.loads(done.stdout.splitlines()[-1])
    assert at_commit == score_task(*llama, "piqa", items).values
    assert f"must be read at commit {OTHER}; only commit {COMMIT} is here" in elsewhere
    shutil.rmtree(tmp_path / "datasets")
    prepare(tmp_path, [*items[:4], items[4] | {"label": -1}])
    done = subprocess.run(
        [sys.executable, "-c", QUICK + OFFLINE, str(reference_folder("llama")), COMMIT],
        env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == [
        "the data set baber/piqa of piqa, split validation, row 4 (from 0): label must be 0 or 1; "
        "found -1: give the items that are whole as files"
    ]
