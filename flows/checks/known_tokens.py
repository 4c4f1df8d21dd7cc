"""Whether the model has an embedding for every token of what a run will read, before it starts.

The files of the tokenizer tell at once where it gives no more ids than the embedding has rows, as
nearly all do. Only where it gives more is it opened, and the texts are read with it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.calibration.documents import numbered_documents
from normtweak_core.errors import InputError
from normtweak_core.evaluate.config import EvaluationConfig
from normtweak_core.evaluate.tasks import numbered_items
from normtweak_core.lazy import lazy
from normtweak_core.model.vocabulary import embedding_rows, most_token_ids
from normtweak_core.paths import given_path

known_ids = lazy("normtweak_core.calibration.known_ids")
tokenizers = lazy("normtweak_core.model.tokenizer")

Texts = Iterator[tuple[str, int, str]]  # file, line that a text begins in, text


def check_tokens(
    folder: Path,
    data: CalibrationConfig | None,
    measured: EvaluationConfig | None,
    tokenizer_folder: Path | None = None,
    more: list[Path] | None = None,
) -> None:
    """Accept a model that has an embedding for every token of the texts that are files here.

    A data set is streamed, so that it is looked at where it is read: by the first stage.

    Args:
        folder: Of the model.
        data: The text to calibrate with or to train on, if any.
        measured: The text and the items to measure on, if any.
        tokenizer_folder: Of its tokenizer, if that is another one.
        more: Further texts.

    Raises:
        InputError: A text, or what the tokenizer begins every text with, has a token without one.
    """
    at = tokenizer_folder or folder
    rows = embedding_rows(folder)
    if most_token_ids(at) <= rows:
        return
    tokenizer = tokenizers.load_tokenizer(at)
    if known_ids.ids_given(tokenizer) <= rows:
        return
    if (data is not None and data.source == "generated") or (measured and measured.tasks):
        _require_known_beginning(tokenizer, rows, at)
    files = list(more or [])
    if data is not None and data.source == "text":
        files.append(given_path(data.path, "calibration.path"))
    if measured is not None and measured.perplexity.path is not None:
        files.append(given_path(measured.perplexity.path, "evaluation.perplexity.path"))
    for file in files:
        texts = ((str(file), line, text) for line, text in numbered_documents(file))
        known_ids.require_known_text(tokenizer, rows, texts)
    if measured is not None and measured.data is not None:
        for task in measured.tasks:
            known_ids.require_known_text(tokenizer, rows, _item_texts(measured.data, task))


def _require_known_beginning(tokenizer: Any, rows: int, folder: Path) -> None:
    """Accept a tokenizer whose token that generation and named tasks begin with is known.

    Raises:
        InputError: It is beyond the embedding.
    """
    name = "bos_token" if tokenizer.bos_token_id is not None else "eos_token"
    token = getattr(tokenizer, f"{name}_id")
    if token is not None and token >= rows:
        raise InputError(
            f"the {name} of {folder}, which texts begin with, must have a row in the embedding",
            found=f"its id is {token}, and the embedding has {rows} rows",
            remedy="call model.resize_token_embeddings(len(tokenizer)) and save the model again, "
            "or name another token",
        )


def _item_texts(data: str, task: str) -> Texts:
    for file, line, item in numbered_items(given_path(data, "evaluation.data"), task):
        for value in item.values():
            yield from ((str(file), line, text) for text in _strings(value) if text)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield " ".join(value.splitlines())  # so that its place is the line of the item
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
