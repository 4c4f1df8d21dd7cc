"""Perplexity of a model, and the divergence of a quantized model from its float original.

The first token of a window is context only: a window of ``length`` tokens gives ``length - 1``
predictions. Log-probabilities are float32, sums are float64. Logits are taken apart a few tokens
at a time, so that beside what a model itself returns there is no second array of vocabulary times
tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from transformers import PreTrainedModel

from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.evaluate.range import beyond
from normtweak_core.evaluate.scores import Comparison, FloatResult

TOKENS_PER_BATCH = 2048  # windows of one forward pass together; follows from length alone
LOGITS_PER_CHUNK = 2**24  # 64 MB in float32, 128 MB in float64

Progress = Callable[[int, int], None]  # windows done, windows in all


def perplexity(
    model: Callable,
    windows: Int64[Tensor, "windows length"],
    progress: Progress | None = None,
    batch_size: int | None = None,
) -> FloatResult:
    """Return how well a causal language model predicts the windows.

    Args:
        model: A transformers causal LM in eval mode, or any function from input ids to logits.
        windows: Token ids; the first of each window is context only.
        progress: Called after each batch with the windows done and the windows in all.
        batch_size: Windows per forward pass; None: as many as 2048 tokens hold.

    Raises:
        InputError: No window, windows of fewer than two tokens, or a model in training mode.
        NonFiniteError: A logit is NaN or infinite.
    """
    nll: list[float] = []
    for batch in _batches(windows, batch_size, (model,)):
        logits = _logits(model, batch, "the model", len(nll))
        nll += _window_nll(logits, batch).tolist()
        if progress:
            progress(len(nll), len(windows))
    return FloatResult(tokens=windows[:, 1:].numel(), window_nll=nll)


def compare(
    quantized_model: Callable,
    float_model: Callable,
    windows: Int64[Tensor, "windows length"],
    progress: Progress | None = None,
    batch_size: int | None = None,
) -> Comparison:
    """Return perplexity of both models, and how far the first has moved from the second.

    Arguments are those of ``perplexity``; standard errors treat windows as the sampling unit.

    Raises:
        InputError: As ``perplexity``, or the models do not share a vocabulary.
        NonFiniteError: A logit of either model is NaN or infinite.
    """
    return compare_each([quantized_model], float_model, windows, progress, batch_size)[0]


def compare_each(
    quantized_models: Sequence[Callable],
    float_model: Callable,
    windows: Int64[Tensor, "windows length"],
    progress: Progress | None = None,
    batch_size: int | None = None,
) -> list[Comparison]:
    """Return `compare` of each of several quantized models, beside one pass of the float model.

    Raises:
        InputError: As ``compare``.
        NonFiniteError: As ``compare``.
    """
    nll_float: list[float] = []
    found = [_Divergence() for _ in quantized_models]
    for batch in _batches(windows, batch_size, (*quantized_models, float_model)):
        done = len(nll_float)
        reference = _logits(float_model, batch, "the float model", done, "model.dtype")
        nll_float += _window_nll(reference, batch).tolist()
        for model, divergence in zip(quantized_models, found, strict=True):
            quantized = _logits(model, batch, "the quantized model", done)
            divergence.add(quantized, reference.to(quantized.device), batch)
        if progress:
            progress(len(nll_float), len(windows))
    tokens = windows[:, 1:].numel()
    reference = FloatResult(tokens=tokens, window_nll=nll_float)
    return [divergence.beside(reference) for divergence in found]


@dataclass
class _Divergence:
    """What is known of one quantized model, window by window."""

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    reverse: list[float] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)

    def add(self, quantized: Tensor, reference: Tensor, batch: Tensor) -> None:
        if quantized.shape != reference.shape:
            raise InputError(
                "Both models must predict the same vocabulary: the quantized model has "
                f"{quantized.shape[-1]} logits, the float model {reference.shape[-1]}. "
                "Compare an export with the model it was made from."
            )
        self.nll += _window_nll(quantized, batch).tolist()
        kl, reverse, agreement = _window_divergence(quantized, reference)
        self.kl += kl.tolist()
        self.reverse += reverse.tolist()
        self.agreement += agreement.tolist()

    def beside(self, reference: FloatResult) -> Comparison:
        return Comparison(
            float_result=reference,
            quantized_result=FloatResult(tokens=reference.tokens, window_nll=self.nll),
            window_kl=self.kl,
            window_kl_reverse=self.reverse,
            window_agreement=self.agreement,
        )


def _batches(
    windows: Int64[Tensor, "windows length"], batch_size: int | None, models: tuple[Callable, ...]
) -> tuple[Int64[Tensor, "batch length"], ...]:
    count, length = windows.shape
    if count == 0 or length < 2:
        raise InputError(
            "Evaluation needs at least one window of two tokens, "
            f"found {count} windows of {length}. Give a longer text or a shorter window length."
        )
    for model in models:
        if isinstance(model, torch.nn.Module) and model.training:
            raise InputError(
                "Evaluation needs a model without dropout, found one in training mode. "
                "Call model.eval() first."
            )
    return windows.split(batch_size or max(1, TOKENS_PER_BATCH // length))


@torch.inference_mode()
def _logits(
    model: Callable,
    ids: Int64[Tensor, "batch length"],
    whose: str,
    window: int,
    key: str = "export.dtype",
) -> Float[Tensor, "batch predicted vocab"]:
    """Return the logits for tokens 1.. of each window, in the model's own dtype."""
    if isinstance(model, PreTrainedModel):
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits
    else:
        logits = model(ids)
    logits = logits[:, :-1]
    for chunk in _chunks(logits):
        if not torch.isfinite(chunk).all():
            last = window + len(ids) - 1
            raise NonFiniteError(
                f"Logits must be finite, found NaN or infinity in {whose} in windows {window} to "
                f"{last}. {beyond(logits.dtype, key)}"
            )
    return logits


def _chunks(
    logits: Float[Tensor, "batch predicted vocab"],
) -> tuple[Float[Tensor, "chunk vocab"], ...]:
    """Return the logits a few tokens at a time, windows one after the other."""
    vocab = logits.shape[-1]
    return logits.flatten(0, 1).split(max(1, LOGITS_PER_CHUNK // vocab))


@torch.inference_mode()
def _window_nll(
    logits: Float[Tensor, "batch predicted vocab"], ids: Int64[Tensor, "batch length"]
) -> Float64[Tensor, " batch"]:
    targets = ids[:, 1:].to(logits.device)
    chunks = _chunks(logits)
    nll = [
        -chunk.float().log_softmax(-1).gather(1, target[:, None])[:, 0]
        for chunk, target in zip(chunks, targets.flatten().split(len(chunks[0])), strict=True)
    ]
    return torch.cat(nll).double().view(targets.shape).mean(1)


@torch.inference_mode()
def _window_divergence(
    quantized: Float[Tensor, "batch predicted vocab"],
    reference: Float[Tensor, "batch predicted vocab"],
) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
    """Return KL both ways and top-1 agreement, the mean over each window's tokens."""
    kl, reverse, same = [], [], []
    for q, f in zip(_chunks(quantized), _chunks(reference), strict=True):
        # Both terms near 0 cancel in the sum over the vocabulary: multiply and add in float64.
        log_q, log_f = q.float().log_softmax(-1).double(), f.float().log_softmax(-1).double()
        difference = log_f - log_q
        kl.append((log_f.exp() * difference).sum(-1))
        reverse.append(-(log_q.exp() * difference).sum(-1))
        same.append((q.argmax(-1) == f.argmax(-1)).double())
    shape = quantized.shape[:2]
    return tuple(torch.cat(part).view(shape).mean(1) for part in (kl, reverse, same))
