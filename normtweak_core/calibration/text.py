"""Text files as documents, and documents as windows of token ids.

Calibration and perplexity read text through this file, so that both mean the same thing by it.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from normtweak_core.calibration.documents import read_documents
from normtweak_core.errors import InputError

__all__ = ["cut_windows", "read_documents", "tokenize", "windows_of"]


def tokenize(documents: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of each document, with the tokenizer's default special tokens."""
    # verbose=False: documents longer than the context are expected here, they are cut below.
    return tokenizer(documents, verbose=False)["input_ids"] if documents else []


def windows_of(ids: Iterable[list[int]], length: int) -> Int64[Tensor, "windows length"]:
    """Return consecutive windows of the concatenated ids; an incomplete last one is dropped."""
    stream = torch.tensor([token for document in ids for token in document], dtype=torch.int64)
    return stream[: stream.numel() // length * length].reshape(-1, length)


def cut_windows(
    documents: list[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> Int64[Tensor, "windows length"]:
    """Return all windows of the documents: tokenized one by one, concatenated, cut.

    Args:
        documents: Texts, in file order.
        tokenizer: Adds its default special tokens to every document.
        length: Tokens per window.

    Raises:
        InputError: The documents hold fewer tokens than one window.
    """
    ids = tokenize(documents, tokenizer)
    windows = windows_of(ids, length)
    if not len(windows):
        raise InputError(
            f"the text must fill at least one window of {length} tokens; found "
            f"{sum(map(len, ids))} tokens: give more text or a smaller length"
        )
    return windows
