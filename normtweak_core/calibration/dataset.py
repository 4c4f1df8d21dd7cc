"""Calibration windows from a Hugging Face data set, read as a stream."""

from collections.abc import Callable, Iterator
from pathlib import Path

from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from normtweak_core.calibration.hub_data import local_data, remember_revision, split_hub_name
from normtweak_core.calibration.text import tokenize, windows_of
from normtweak_core.errors import InputError
from normtweak_core.lazy import lazy
from normtweak_core.randomness import derived_seed

# A second to import, and few recipes name a data set.
datasets = lazy("datasets")
pyarrow = lazy("pyarrow")

SHUFFLE_BUFFER = 1000  # documents held to shuffle a stream; more means a slower first window
BATCH = 64  # documents tokenized at once
BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".txt": "text",
}


def dataset_windows(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    samples: int,
    length: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    revision: str | None = None,
) -> tuple[Int64[Tensor, "samples length"], int]:
    """Return windows cut from a data set's training split, and how many documents they took.

    Documents are shuffled in a seeded buffer and taken until the windows are full, so a large data
    set is not read to its end.

    Args:
        path: A file (.json, .jsonl, .parquet, .arrow, .csv, .txt), a folder of such files, a folder
            written by ``save_to_disk``, or a hub name, with ``name:configuration`` where the data
            set has several. ``~`` is the home folder. Documents are the strings of its field
            ``text``.
        tokenizer: Adds its default special tokens to every document.
        samples: Number of windows.
        length: Tokens per window.
        seed: Recipe seed.
        progress: Called with (tokens found, tokens needed).
        revision: Commit to read of a hub data set; None: the newest, which may change any time.

    Raises:
        InputError: The data set cannot be opened or read, has no field ``text``, is too short, or
            is offered at another commit only.
    """
    needed = samples * length
    ids: list[list[int]] = []
    tokens = 0
    for documents in _batches(_texts(path, seed, revision), BATCH):
        for document in tokenize(documents, tokenizer):
            if tokens < needed:
                ids.append(document)
                tokens += len(document)
        if progress:
            progress(min(tokens, needed), needed)
        if tokens >= needed:
            return windows_of(ids, length)[:samples], len(ids)
    raise InputError(
        f"asks for {samples} windows of {length} tokens",
        key="calibration.samples",
        found=f"data set {path} holds {tokens // length}",
        remedy="choose a larger data set, or lower samples or length",
    )


def _texts(path: str, seed: int, revision: str | None) -> Iterator[str]:
    try:
        stream = _open(path, revision).shuffle(
            seed=derived_seed(seed, "calibration dataset"), buffer_size=SHUFFLE_BUFFER
        )
        for row in stream:
            if not isinstance(row.get("text"), str):
                raise InputError(
                    f'data set {path} must have a string field "text"; found fields '
                    f"{', '.join(row)}: rename the field"
                )
            yield row["text"]
    except InputError:
        raise  # a ValueError too, and already in words
    except (
        OSError,
        ValueError,
        datasets.exceptions.DatasetsError,
        pyarrow.ArrowException,
    ) as error:
        # Missing names, unknown configurations, refused networks and torn files.
        raise InputError(
            "must be a file, a folder or a hub name that can be read",
            key="calibration.path",
            found=f"data set {path} cannot: {' '.join(str(error).split())}",
        ) from error


def _open(path: str, revision: str | None) -> "datasets.IterableDataset":
    local = local_data(path)
    return _open_hub(path, revision) if local is None else _open_local(local)


def _open_local(path: Path) -> "datasets.IterableDataset":
    if path.is_file():
        builder = BUILDERS.get(path.suffix.lower())
        if builder is None:
            raise InputError(
                f"a data set file must end in {', '.join(BUILDERS)}; found {path}: convert it"
            )
        return datasets.load_dataset(builder, data_files=str(path), split="train", streaming=True)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = datasets.load_from_disk(path)
        if isinstance(saved, datasets.DatasetDict):
            if "train" not in saved:
                raise InputError(
                    f"data set {path} must have a split train; found {', '.join(saved)}: give the "
                    "folder of one split"
                )
            saved = saved["train"]
        return saved.to_iterable_dataset()
    _require_train(str(path), datasets.get_dataset_split_names(str(path)))
    return datasets.load_dataset(str(path), split="train", streaming=True)


def _open_hub(path: str, revision: str | None) -> "datasets.IterableDataset":
    name, configuration = split_hub_name(path)
    builder = hub_builder(path, revision)
    splits = datasets.get_dataset_split_names(name, configuration, revision=revision)
    _require_train(path, splits)
    if revision is not None:
        remember_revision(name)
    return builder.as_streaming_dataset(split="train")


def hub_builder(path: str, revision: str | None) -> "datasets.DatasetBuilder":
    """Return the builder of a hub data set ``name:configuration`` at a commit.

    Raises:
        InputError: The hub is out of reach, and another commit is all that was prepared here.
    """
    builder = datasets.load_dataset_builder(*split_hub_name(path), revision=revision)
    # Without the hub, datasets takes whatever copy it prepared last and ignores the revision.
    if revision is not None and builder.hash != revision:
        raise InputError(
            f"data set {path} must be read at commit {revision}; only commit {builder.hash} is "
            "here: connect to the hub, or give a file"
        )
    return builder


def _require_train(path: str, splits: list[str]) -> None:
    if "train" not in splits:
        raise InputError(
            f"data set {path} must have a split train; found {', '.join(splits)}: choose another"
        )


def _batches(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
