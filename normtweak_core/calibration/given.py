"""Calibration sets of texts or token ids that the caller has in memory."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.calibration.known_ids import require_known_ids
from normtweak_core.calibration.length import effective_length
from normtweak_core.calibration.sets import CalibrationSet, set_of_texts
from normtweak_core.calibration.text import cut_windows
from normtweak_core.errors import InputError
from normtweak_core.paths import shown

FEWEST_WINDOWS = FEWEST_TOKENS = 8  # as in `CalibrationConfig`


def given_set(
    given: Any,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    samples: int | None,
    length: int | None,
    seed: int,
    context: int | None,
) -> CalibrationSet:
    """Return windows of the texts, or the token ids as they are.

    Args:
        given: Texts, or token ids of shape (windows, tokens).
        tokenizer: The model's tokenizer.
        model: The float model.
        samples: Windows to draw from texts; None: as many as a recipe asks for, or all there are.
        length: Tokens per window of texts; None: as in a recipe.
        seed: Of the draw.
        context: The model's.

    Raises:
        InputError: It is neither, holds too little, a window is longer than the model's context, or
            a token has no row in the embedding.
    """
    if isinstance(given, Tensor):
        made = CalibrationSet(_checked_ids(given, samples, length, context), "tokens")
    else:
        made = _of_texts(_checked_texts(given), tokenizer, samples, length, seed, context)
    require_known_ids(made.input_ids, model, tokenizer, "calibration")
    return made


def _of_texts(
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    samples: int | None,
    length: int | None,
    seed: int,
    context: int | None,
) -> CalibrationSet:
    length = effective_length(length, context)
    if samples is None:
        there = len(cut_windows(texts, tokenizer, length))
        usual = CalibrationConfig.model_fields["samples"].default
        samples = max(FEWEST_WINDOWS, min(usual, there))
    return set_of_texts(texts, samples, tokenizer, length, seed, "the text given")


def _checked_texts(given: Any) -> list[str]:
    what = "must be a list of texts, a tensor of token ids, a CalibrationConfig or None"
    if isinstance(given, str):
        raise InputError(
            what,
            key="calibration",
            found=f"found the text {shown(given)}",
            remedy="give [text], or CalibrationConfig(source='text', path=...) for a file",
        )
    if not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
        raise InputError(what, key="calibration", found=f"found {_kind(given)}")
    if not any(text.strip() for text in given):
        raise InputError(
            "must hold text", key="calibration", found=f"found {len(given)} empty texts"
        )
    return list(given)


def _kind(given: Any) -> str:
    if not isinstance(given, Sequence):
        return f"a {type(given).__name__}"
    other = next(one for one in given if not isinstance(one, str))
    return f"a {type(given).__name__} that holds a {type(other).__name__}"


def _checked_ids(
    ids: Tensor, samples: int | None, length: int | None, context: int | None
) -> Tensor:
    """Return token ids as int64 on the CPU."""
    floats = ids.is_floating_point() or ids.is_complex()
    if ids.ndim != 2 or floats or len(ids) < FEWEST_WINDOWS or ids.shape[1] < FEWEST_TOKENS:
        raise InputError(
            f"must be whole numbers of shape (windows, tokens), at least {FEWEST_WINDOWS} x "
            f"{FEWEST_TOKENS}, where it is a tensor",
            key="calibration",
            found=f"found {str(ids.dtype).removeprefix('torch.')} of shape {tuple(ids.shape)}",
        )
    if samples is not None or length is not None:
        raise InputError(
            "is for texts and for what the model writes",
            key="calibration.samples" if samples is not None else "calibration.length",
            found="found it beside token ids, which are taken as they are",
            remedy="leave it out, or cut the tensor",
        )
    if context is not None and ids.shape[1] > context:
        raise InputError(
            f"must have windows of at most the model's context of {context} tokens",
            key="calibration",
            found=f"found {ids.shape[1]}",
            remedy="cut them",
        )
    if int(ids.min()) < 0:
        raise InputError(
            "must hold no padding and no ignored tokens",
            key="calibration",
            found=f"found the id {int(ids.min())}",
            remedy="leave such windows out",
        )
    return ids.detach().to("cpu").long()
