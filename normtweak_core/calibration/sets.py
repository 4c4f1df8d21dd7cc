"""Calibration sets: windows of token ids, from one of four sources."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from normtweak_core.calibration.config import CalibrationConfig, images_of
from normtweak_core.calibration.dataset import dataset_windows
from normtweak_core.calibration.first_token import ordinary_token_ids
from normtweak_core.calibration.generate import generate_windows
from normtweak_core.calibration.known_ids import require_known_ids
from normtweak_core.calibration.text import cut_windows, read_documents
from normtweak_core.errors import InputError
from normtweak_core.paths import given_path
from normtweak_core.randomness import generator
from normtweak_core.vision.kinds import image_token_ids
from normtweak_core.vision.windows import ImageWindows
from normtweak_core.vision.writing import write_image_windows

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CalibrationSet:
    """Token ids shown to the model to collect statistics.

    Attributes:
        input_ids: One row a window.
        source: ``generated``, ``text``, ``dataset``, ``random``, or ``tokens`` given as such.
        facts: What is known of the source: JSON values only; no path, no time.
        images: The same windows with the images that are in them; None: they are text.
    """

    input_ids: Int64[Tensor, "samples length"]
    source: str
    facts: dict[str, object] = field(default_factory=dict)
    images: ImageWindows | None = None

    @property
    def windows(self) -> Int64[Tensor, "samples length"] | ImageWindows:
        """What a model reads: the ids, with the images that belong to them."""
        return self.input_ids if self.images is None else self.images

    @property
    def sha256(self) -> str:
        """SHA-256 over the shape and the ids, and over what goes with images."""
        shape = "x".join(map(str, self.input_ids.shape)).encode()
        ids = self.input_ids.contiguous().numpy().astype("<i8").tobytes()
        digest = hashlib.sha256(shape + b"\n" + ids)
        for name, value in sorted(self.images.inputs.items()) if self.images else ():
            digest.update(f"\n{name} {list(value.shape)}\n".encode())
            digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()


def build_calibration_set(
    config: CalibrationConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | None,
    length: int,
    seed: int,
    progress: Progress | None = None,
    revision: str | None = None,
    folder: Path | None = None,
) -> CalibrationSet:
    """Return the calibration set that a recipe asks for.

    Args:
        config: The recipe's calibration section.
        tokenizer: The model's tokenizer.
        model: The float model in eval mode; needed by ``generated``. Where given, ``random`` keeps
            to ids that it has an embedding for.
        length: Tokens per window (``length.effective_length``).
        seed: The recipe's seed.
        progress: Called with (tokens done, tokens in all) while text is generated or streamed.
        revision: Commit to read of a hub data set (``hub_data_revision``); None: its newest.
        folder: Of the model, whose processor takes images; needed where the recipe names some.

    Raises:
        InputError: The text or data set is missing, malformed or too short, or has tokens that the
            model has no embedding for; the vocabulary has no first token in the languages asked
            for, or ``generated`` comes without a model.
        NonFiniteError: The model's logits are NaN.
    """
    if config.source == "text":
        path = given_path(config.path, "calibration.path")
        made = _from_text(path, config.samples, tokenizer, length, seed)
    elif config.source == "dataset":
        windows, documents = dataset_windows(
            config.path, tokenizer, config.samples, length, seed, progress, revision
        )
        made = CalibrationSet(windows, "dataset", {"documents": documents})
    if config.source in ("text", "dataset"):
        if model is not None:
            require_known_ids(made.input_ids, model, tokenizer, f"{config.source} {config.path}")
        return made
    if config.source == "random":
        return _random_ids(config.samples, tokenizer, model, length, seed)
    if model is None:
        raise InputError(
            "generated needs the float model",
            key="calibration.source",
            found="found none",
            remedy="load it, or choose text, dataset or random",
        )
    return _written(config, tokenizer, model, length, seed, progress, folder)


def _written(
    config: CalibrationConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    length: int,
    seed: int,
    progress: Progress | None,
    folder: Path | None,
) -> CalibrationSet:
    """Return windows that the model writes, by itself or about images."""
    if (given := images_of(config)) is not None:
        images, facts = write_image_windows(
            model, tokenizer, folder, given, config.samples, length, seed, progress
        )
        return CalibrationSet(images.input_ids, "generated", facts, images)
    written = generate_windows(
        model, tokenizer, config.samples, length, seed, config.languages, progress=progress
    )
    first = written.first_tokens
    facts = {
        "documents": written.documents,
        "first_token_candidates": len(first.token_ids),
        "scripts": list(first.scripts),
        "script_shares": {script: round(share, 4) for script, share in first.shares.items()},
    }
    return CalibrationSet(written.input_ids, "generated", facts)


def _from_text(
    path: Path, samples: int, tokenizer: PreTrainedTokenizerBase, length: int, seed: int
) -> CalibrationSet:
    made = set_of_texts(read_documents(path), samples, tokenizer, length, seed, str(path))
    made.facts["text_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return made


def set_of_texts(
    documents: list[str],
    samples: int,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    seed: int,
    where: str = "the text",
) -> CalibrationSet:
    """Return windows of the documents, drawn without repetition.

    Args:
        documents: Texts.
        samples: How many windows.
        tokenizer: Adds its default special tokens to every document.
        length: Tokens per window.
        seed: Of the draw.
        where: What the documents are called, for a message.

    Raises:
        InputError: The documents hold fewer windows.
    """
    windows = cut_windows(documents, tokenizer, length)
    if len(windows) < samples:
        raise InputError(
            f"asks for {samples} windows of {length} tokens",
            key="calibration.samples",
            found=f"{where} holds {len(windows)}",
            remedy="give more text, or lower samples or length",
        )
    order = torch.randperm(len(windows), generator=generator(seed, "calibration text"))
    facts = {"documents": len(documents), "windows_available": len(windows)}
    return CalibrationSet(windows[order[:samples]], "text", facts)


def _random_ids(
    samples: int,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | None,
    length: int,
    seed: int,
) -> CalibrationSet:
    vocab_size = None if model is None else model.get_input_embeddings().num_embeddings
    ordinary = ordinary_token_ids(tokenizer, vocab_size)
    if model is not None:
        images = torch.tensor(image_token_ids(model.config), dtype=torch.int64)
        ordinary = ordinary[~torch.isin(ordinary, images)]
    draws = torch.randint(
        len(ordinary), (samples, length), generator=generator(seed, "calibration random")
    )
    return CalibrationSet(ordinary[draws], "random", {"vocabulary": len(ordinary)})
