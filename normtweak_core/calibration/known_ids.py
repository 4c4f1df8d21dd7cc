"""Whether a model has an embedding for every token of what it is to read.

A tokenizer to which tokens were added gives ids beyond the embedding of a model that was not
resized; looking one up ends in an IndexError, or on a GPU worse.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from normtweak_core.errors import InputError
from normtweak_core.paths import shown
from normtweak_core.vision.kinds import image_token_ids


def ids_given(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many ids a tokenizer can give: one more than its largest."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def require_known_text(
    tokenizer: PreTrainedTokenizerBase, rows: int, texts: Iterable[tuple[str, int, str]]
) -> None:
    """Accept texts all of whose tokens have a row in the embedding.

    Args:
        tokenizer: Adds its default special tokens.
        rows: Of the embedding.
        texts: File, line of the file that the text begins in, and text.

    Raises:
        InputError: One has another token.
    """
    for file, line, text in texts:
        found = tokenizer(text, verbose=False, return_offsets_mapping=tokenizer.is_fast)
        ids = found["input_ids"]
        beyond = next((place for place, token in enumerate(ids) if token >= rows), None)
        if beyond is not None:
            offset = found["offset_mapping"][beyond][0] if tokenizer.is_fast else 0
            at = line + text.count("\n", 0, offset)
            raise _unknown(f"{file} line {at}", ids[beyond], tokenizer, rows)


def require_known_ids(
    ids: Int64[Tensor, "*any"],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    what: str,
) -> None:
    """Accept ids of text that the embedding of a model in memory has rows for.

    Args:
        ids: What the model is to read.
        model: The model.
        tokenizer: Tells which token an id is.
        what: Where the ids come from, for a message.

    Raises:
        InputError: One is beyond the embedding, or stands for an image.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    largest = int(ids.max()) if torch.numel(ids) else -1
    if largest >= rows:
        raise _unknown(what, largest, tokenizer, rows)
    for token in image_token_ids(model.config):
        if (ids == token).any():
            raise InputError(
                f"{what} must hold text alone",
                found=f"{shown(tokenizer.convert_ids_to_tokens(token))} stands for an image or a "
                "video, and comes without one",
                remedy="take it out of the text",
            )


def _unknown(where: str, token: int, tokenizer: PreTrainedTokenizerBase, rows: int) -> InputError:
    return InputError(
        f"{where} must hold tokens of the model alone",
        found=f"{shown(tokenizer.convert_ids_to_tokens(token))} has the id {token}, and the "
        f"embedding has {rows} rows",
        remedy="call model.resize_token_embeddings(len(tokenizer)) and save the model again, or "
        "take the token out",
    )
