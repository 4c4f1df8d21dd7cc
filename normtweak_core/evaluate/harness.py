"""Named tasks on a model in memory, scored by EleutherAI's lm-eval.

Prompts, answers and metrics are lm-eval's own, without examples in the prompt. What is ours: items
come from local files where there are some, every item's score is kept, so that two models can be
compared in pairs, and no global random generator is set.
"""

import contextlib
import functools
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import lm_eval.api.task
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from normtweak_core.calibration.dataset import hub_builder
from normtweak_core.calibration.hub_data import remember_revision, split_hub_name
from normtweak_core.calibration.known_ids import require_known_ids
from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.evaluate.range import beyond
from normtweak_core.evaluate.task_scores import TaskScores
from normtweak_core.evaluate.tasks import TASKS, usable_item
from normtweak_core.model.architecture import first_line

BATCH = 16  # sequences of one forward pass
SPLIT = "items"
# What is measured of each item, as lm-eval names it and as we do: its perplexity is exp(-mean) of
# the log-likelihood of the answer.
MEASURED = {"acc": "acc", "acc_norm": "acc_norm", "perplexity": "loglikelihood"}


def score_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    items: list[dict[str, Any]] | None,
    max_items: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    revision: str | None = None,
) -> TaskScores:
    """Return how a model answers the items of a task.

    Args:
        model: In eval mode.
        tokenizer: Its tokenizer.
        task: Name in `TASKS`.
        items: From `read_items`; None: the data set that lm-eval names, from the hub.
        max_items: Only so many, from the beginning.
        progress: Called with the sequences done and those in all.
        revision: Commit of the data set on the hub, where no items are given.

    Raises:
        InputError: The data set cannot be had at that commit or has an item that cannot be scored,
            the tokenizer lacks a token that
            lm-eval begins a text with, or an answer is longer than the model's context. (Of a
            prompt that is too long the end is kept, as lm-eval has it.)
        NonFiniteError: The model gives an answer a likelihood of NaN.
    """
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise InputError(
            "named tasks need a tokenizer with a BOS or an EOS token, which lm-eval begins a text "
            "with; the model's has neither: name one in tokenizer_config.json"
        )
    with _undisturbed():
        loaded = _load(task, _hub_items(task, revision) if items is None else items)
        loaded.set_config(key="num_fewshot", value=0)
        # Not `simple_evaluate`, which sets the global generators, and takes longer to describe the
        # machine than a small task takes.
        results = lm_eval.evaluate(
            lm=_Model(model, tokenizer, task, progress),
            task_dict={"tasks": {task: loaded}},
            limit=max_items,
            bootstrap_iters=0,  # standard errors follow from the items
            log_samples=True,
        )
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    values = {
        ours: [float(sample[theirs]) for sample in samples]
        for theirs, ours in MEASURED.items()
        if theirs in samples[0]
    }
    for sample in samples:
        for answer in sample["filtered_resps"]:
            if answer[0] != answer[0]:
                raise NonFiniteError(
                    f"the likelihood of an answer must be a number; found NaN at item "
                    f"{sample['doc_id']} of {task}. {beyond(model.dtype)}"
                )
    return TaskScores(task=task, version=str(results["versions"][task]), values=values)


def _hub_items(task: str, revision: str | None) -> list[dict[str, Any]]:
    """Return the items that lm-eval would take from the hub, at a commit."""
    named = TASKS[task]
    try:
        builder = hub_builder(named.hub, revision)
        builder.download_and_prepare()
        rows = builder.as_dataset(split=named.split).to_list()
    except (OSError, ValueError) as error:  # of datasets: it has many, all of them one of these
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"is needed where the data set {named.hub} of {task} cannot be read",
            key="evaluation.data",
            found=first_line(error),
            remedy="give its items as files",
        ) from error
    remember_revision(split_hub_name(named.hub)[0])
    where = f"the data set {named.hub} of {task}, split {named.split}, row "
    try:
        return [
            usable_item(task, row, f"{where}{number} (from 0)") for number, row in enumerate(rows)
        ]
    except InputError as error:
        error.remedy = "give the items that are whole as files"
        raise


def _load(task: str, items: list[dict[str, Any]]) -> Any:
    """Return lm-eval's task with items in the place of its own data set."""
    rows = datasets.DatasetDict({SPLIT: datasets.Dataset.from_list(items)})
    local = {
        "custom_dataset": lambda **_: rows,
        "training_split": None,
        "validation_split": None,
        "fewshot_split": None,
        "test_split": SPLIT,
    }
    folder = Path(lm_eval.__file__).parent / "tasks" / TASKS[task].folder
    manager = TaskManager(include_path=folder, include_defaults=False)
    # A group, since only its members are the registered task with some of its keys replaced.
    return manager.load({"group": "ours", "task": [{"task": task, **local}]})["tasks"][task]


class _Model(HFLM):
    """lm-eval's model, which tells how far it is and names an answer that it cannot take."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: str,
        progress: Callable[[int, int], None],
    ):
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=BATCH)
        self._task, self._progress = task, progress
        self._asked: list[Any] = []
        self._done = self._total = 0

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        self._asked, self._total = requests, len(requests)
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        # Before the first batch: lm-eval would assert at the batch, and not say which item it is.
        for asked, (_, prompt, answer) in zip(self._asked, requests, strict=True):
            where = f"item {asked.doc_id} of {self._task}, counted from 0,"
            ids = torch.tensor([*prompt, *answer])
            require_known_ids(ids, self.model, self.tokenizer, where)
            if len(answer) > self.max_length:
                raise InputError(
                    "must hold answers that fit in the model's context of "
                    f"{self.max_length} tokens",
                    key="evaluation.data",
                    found=f"one of item {asked.doc_id} of {self._task}, counted from 0, has "
                    f"{len(answer)}",
                    remedy="leave the item out of the files",
                )
        return super()._loglikelihood_tokens(requests, *args, **kwargs)

    def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
        logits = super()._model_call(inps, *args, **kwargs)
        self._done += len(inps)
        self._progress(min(self._done, self._total), self._total)
        return logits


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep lm-eval from its own progress bars, remarks for its users, and Python's generator."""
    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, lm_eval.api.task.tqdm
    state = random.getstate()  # it draws names of tasks, even those that have one
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bar
        random.setstate(state)
