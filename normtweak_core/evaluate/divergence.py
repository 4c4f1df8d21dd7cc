"""Perplexity of a model, and the divergence of a quantized model from its float original.

The first token of a window is context only: a window of ``length`` tokens gives ``length - 1``
predictions. Log-probabilities are float32, sums are float64. Logits are taken apart a few tokens
at a time, see `normtweak_core.evaluate.predictions`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from normtweak_core.errors import InputError
from normtweak_core.evaluate.predictions import Predictions, Predictor, Progress, batches, pieces
from normtweak_core.evaluate.scores import Comparison, FloatResult


def perplexity(
    model: Predictor,
    windows: Int64[Tensor, "windows length"],
    progress: Progress | None = None,
    batch_size: int | None = None,
) -> FloatResult:
    """Return how well a causal language model predicts the windows.

    Args:
        model: A transformers causal LM in eval mode, any function from input ids to logits, or
            what `walked` has returned for these windows and this batch size.
        windows: Token ids; the first of each window is context only.
        progress: Called after each batch with the windows done and the windows in all.
        batch_size: Windows per forward pass; None: as many as 2048 tokens hold.

    Raises:
        InputError: No window, windows of fewer than two tokens, or a model in training mode.
        NonFiniteError: A logit is NaN or infinite.
    """
    found = _Nll()
    for number, ids in enumerate(_batches(windows, batch_size, (model,))):
        predicted = Predictions(model, number, ids, "the model", len(found.windows))
        for piece in pieces(ids.shape, predicted.vocabulary):
            found.add(predicted.of(piece), _targets(ids, piece))
        found.end(len(ids))
        if progress:
            progress(len(found.windows), len(windows))
    return FloatResult(tokens=windows[:, 1:].numel(), window_nll=found.windows)


def compare(
    quantized_model: Predictor,
    float_model: Predictor,
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
    quantized_models: Sequence[Predictor],
    float_model: Predictor,
    windows: Int64[Tensor, "windows length"],
    progress: Progress | None = None,
    batch_size: int | None = None,
) -> list[Comparison]:
    """Return `compare` of each of several quantized models, beside one pass of the float model.

    Raises:
        InputError: As ``compare``.
        NonFiniteError: As ``compare``.
    """
    reference, found = _Nll(), [_Divergence() for _ in quantized_models]
    models = (*quantized_models, float_model)
    for number, ids in enumerate(_batches(windows, batch_size, models)):
        done = len(reference.windows)
        expected = Predictions(float_model, number, ids, "the float model", done, "model.dtype")
        predicted = [
            Predictions(model, number, ids, "the quantized model", done)
            for model in quantized_models
        ]
        for piece in pieces(ids.shape, expected.vocabulary):
            logits, targets = expected.of(piece), _targets(ids, piece)
            reference.add(logits, targets)
            for model, divergence in zip(predicted, found, strict=True):
                divergence.add(model.of(piece), logits, targets)
        for one in (reference, *found):
            one.end(len(ids))
        if progress:
            progress(len(reference.windows), len(windows))
    result = FloatResult(tokens=windows[:, 1:].numel(), window_nll=reference.windows)
    return [divergence.beside(result) for divergence in found]


@dataclass
class _Mean:
    """A value of every token, as the mean over the tokens of each window."""

    windows: list[float] = field(default_factory=list)
    tokens: list[Float64[Tensor, " tokens"]] = field(default_factory=list)  # of the batch at hand

    def end(self, count: int) -> None:
        """Close a batch of so many windows."""
        self.windows += torch.cat(self.tokens).view(count, -1).mean(1).tolist()
        self.tokens.clear()


class _Nll(_Mean):
    """How unlikely each token was to one model, in nats."""

    @torch.inference_mode()
    def add(self, logits: Float[Tensor, "tokens vocab"], targets: Int64[Tensor, " tokens"]) -> None:
        log = logits.float().log_softmax(-1)
        nll = -log.gather(1, targets.to(logits.device)[:, None])[:, 0]
        self.tokens.append(nll.double())


@dataclass
class _Divergence:
    """What is known of one quantized model."""

    nll: _Nll = field(default_factory=_Nll)
    kl: _Mean = field(default_factory=_Mean)
    reverse: _Mean = field(default_factory=_Mean)
    agreement: _Mean = field(default_factory=_Mean)

    @torch.inference_mode()
    def add(self, quantized: Tensor, reference: Tensor, targets: Tensor) -> None:
        if quantized.shape != reference.shape:
            raise InputError(
                "Both models must predict the same vocabulary: the quantized model has "
                f"{quantized.shape[-1]} logits, the float model {reference.shape[-1]}. "
                "Compare an export with the model it was made from."
            )
        self.nll.add(quantized, targets)
        q, f = quantized, reference.to(quantized.device)
        # Both terms near 0 cancel in the sum over the vocabulary: multiply and add in float64.
        log_q, log_f = q.float().log_softmax(-1).double(), f.float().log_softmax(-1).double()
        difference = log_f - log_q
        self.kl.tokens.append((log_f.exp() * difference).sum(-1))
        self.reverse.tokens.append(-(log_q.exp() * difference).sum(-1))
        self.agreement.tokens.append((q.argmax(-1) == f.argmax(-1)).double())

    def end(self, count: int) -> None:
        for one in (self.nll, self.kl, self.reverse, self.agreement):
            one.end(count)

    def beside(self, reference: FloatResult) -> Comparison:
        return Comparison(
            float_result=reference,
            quantized_result=FloatResult(tokens=reference.tokens, window_nll=self.nll.windows),
            window_kl=self.kl.windows,
            window_kl_reverse=self.reverse.windows,
            window_agreement=self.agreement.windows,
        )


def _batches(
    windows: Int64[Tensor, "windows length"], batch_size: int | None, models: Sequence[Predictor]
) -> tuple[Int64[Tensor, "_ length"], ...]:
    for model in models:
        if isinstance(model, torch.nn.Module) and model.training:
            raise InputError(
                "Evaluation needs a model without dropout, found one in training mode. "
                "Call model.eval() first."
            )
    return batches(windows, batch_size)


def _targets(
    ids: Int64[Tensor, "batch length"], piece: tuple[slice, slice]
) -> Int64[Tensor, " tokens"]:
    """Return the tokens that those of a piece predict."""
    rows, tokens = piece
    return ids[rows, tokens.start + 1 : tokens.stop + 1].flatten()
