"""What a model predicts for the tokens of some windows, a few tokens at a time.

A whole model computes the logits of a batch of windows at once. Of a model that is walked block by
block there are the hidden states of all windows behind its last block, and its own head, from its
last norm on, makes logits of them: no more than one block is in memory, and beside the hidden
states no array grows with the text. Both compute the same numbers: batches have the same shape, and
so has what goes through the head, unless a batch has more logits than `LOGITS_PER_PIECE`.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import PreTrainedModel

from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.evaluate.range import beyond
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.vision.windows import ImageWindows

TOKENS_PER_BATCH = 2048  # windows of one forward pass together; follows from length alone
# 12 MiB in float32, 24 MiB in float64: the allocator hands such pieces out again, larger ones are
# mapped anew by the kernel, page by page, for every operation.
LOGITS_PER_PIECE = 3 * 2**20

Progress = Callable[[int, int], None]  # done, in all
Piece = tuple[slice, slice]  # windows of a batch, tokens of a window
WHOLE = (slice(None), slice(None))


@dataclass(frozen=True)
class Walked:
    """The hidden states of some windows behind the last block of a model, and its head."""

    model: StreamedModel
    states: Sequence[Float[Tensor, "_ length hidden"]]  # of each batch, on the CPU

    @functools.cached_property
    def vocabulary(self) -> int:
        """How many logits a token has."""
        return self.logits(0, (slice(0, 1), slice(0, 1))).shape[-1]

    @torch.no_grad()
    def logits(self, number: int, piece: Piece = WHOLE) -> Float[Tensor, "windows tokens vocab"]:
        """Return the logits of a batch or a part of it."""
        return self.model.head(self.states[number][piece].to(self.model.device))


Predictor = Walked | Callable  # a causal LM in memory, or any function from input ids to logits


def walked(
    model: StreamedModel,
    windows: Int64[Tensor, "windows length"] | ImageWindows,
    progress: Progress | None = None,
    batch_size: int | None = None,
) -> Walked:
    """Return a model's hidden states for some windows, one block after the other.

    Args:
        model: Read block by block.
        windows: Token ids.
        progress: Called after each block with the blocks done and the blocks in all.
        batch_size: Windows per forward pass; None: as many as 2048 tokens hold.

    Raises:
        InputError: No window, windows of fewer than two tokens, or a model that does more between
            its blocks than hand the hidden state on.
        NonFiniteError: A weight is NaN or infinite.
    """
    for done, states in enumerate(model.walk(batches(windows, batch_size)), start=1):
        if progress:
            progress(done, model.num_blocks)
        if done == model.num_blocks:
            return Walked(model, states)


def batches(
    windows: Int64[Tensor, "windows length"] | ImageWindows, batch_size: int | None
) -> tuple[Int64[Tensor, "_ length"] | ImageWindows, ...]:
    """Return the windows that pass through a model together.

    Raises:
        InputError: There is no window, or one has fewer than two tokens.
    """
    count, length = windows.shape
    if count == 0 or length < 2:
        raise InputError(
            "Evaluation needs at least one window of two tokens, "
            f"found {count} windows of {length}. Give a longer text or a shorter window length."
        )
    return windows.split(batch_size or max(1, TOKENS_PER_BATCH // length))


class Predictions:
    """The logits of one model for one batch."""

    def __init__(
        self,
        model: Predictor,
        number: int,
        ids: Int64[Tensor, "batch length"],
        whose: str,
        window: int,
        key: str = "export.dtype",
    ):
        """Compute the logits of a whole model; of one that was walked nothing yet.

        Args:
            model: The model.
            number: Of the batch.
            ids: The batch.
            whose: Who predicts, for a message.
            window: Which window is the first, for a message.
            key: Of the recipe that says what the model computes in, for a message.
        """
        self._model, self._number, self._length = model, number, ids.shape[1]
        self._told = f"in {whose} in windows {window} to {window + len(ids) - 1}", key
        self._whole = None if isinstance(model, Walked) else _whole_logits(model, ids)

    @property
    def vocabulary(self) -> int:
        """How many logits a token has."""
        return self._model.vocabulary if self._whole is None else self._whole.shape[-1]

    @torch.inference_mode()
    def of(self, piece: Piece) -> Float[Tensor, "predicted vocab"]:
        """Return the logits of a piece in the model's own dtype, windows one after the other.

        The last token of a window predicts none.

        Raises:
            NonFiniteError: One is NaN or infinite.
        """
        whole = self._whole
        logits = self._model.logits(self._number, piece) if whole is None else whole[piece]
        tokens = piece[1]
        logits = logits[:, : min(tokens.stop, self._length - 1) - tokens.start].flatten(0, 1)
        if not torch.isfinite(logits).all():
            where, key = self._told
            raise NonFiniteError(
                f"Logits must be finite, found NaN or infinity {where}. {beyond(logits.dtype, key)}"
            )
        return logits


@torch.inference_mode()
def _whole_logits(
    model: Callable, ids: Int64[Tensor, "batch length"]
) -> Float[Tensor, "batch length vocab"]:
    if isinstance(model, PreTrainedModel):
        return model(input_ids=ids.to(model.device), use_cache=False).logits
    return model(ids)


def pieces(shape: Sequence[int], vocabulary: int) -> Iterator[Piece]:
    """Yield the parts of a batch that have few enough logits: whole windows where they are short.

    Args:
        shape: Windows of the batch, tokens of a window.
        vocabulary: Logits of a token.
    """
    count, length = shape
    most = max(1, LOGITS_PER_PIECE // vocabulary)  # tokens
    windows = max(1, most // length)
    for first in range(0, count, windows):
        rows = slice(first, min(first + windows, count))
        for start in range(0, length, min(most, length)):
            yield rows, slice(start, min(start + most, length))
