"""Is a calibration set worth calibrating on? Asked before it is used.

Statistics from degenerate text (one word over and over, one window many times, text the model
cannot read) fit the quantized model to that text; every later number looks plausible.
"""

import logging
import math
from typing import Literal

import torch
from jaxtyping import Float64, Int64
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from normtweak_core.calibration.first_token import ordinary_token_ids
from normtweak_core.calibration.ngrams import NgramStatistics, duplicate_windows, ngram_statistics
from normtweak_core.calibration.scripts import count_scripts
from normtweak_core.calibration.sets import CalibrationSet
from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.evaluate.predictions import walked
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.vision.windows import ImageWindows, model_inputs, of_text, token_ids

log = logging.getLogger(__name__)

# Measured with a 260k-parameter story model and its 512 tokens, 64 windows of 512: distinct
# 4-grams in a window 0.97 for its own text, 0.91 for stories, 0.90 for encyclopedia prose, 0.002
# for a constant. The limits lie far below what any prose shows.
WARN_DISTINCT_4 = 0.5
REFUSE_DISTINCT_4 = 0.2
# Over the whole set the same texts show 0.6 to 0.7; it falls with size, hence the wide margin.
REFUSE_DISTINCT_4_IN_SET = 0.05
# Not measured, chosen: a few looping windows dilute the statistics, half of them dominate these.
WARN_REPETITIVE = 0.05
REFUSE_REPETITIVE = 0.5
# Any copy wastes a window; when half are copies, the set is not the size that was asked for.
REFUSE_DUPLICATES = 0.5
# Share of the tokens that could occur (at most one per position). Chosen low, not measured on
# large vocabularies, where one language fills a small part; hence only a warning.
WARN_COVERAGE = 0.02
# In units of ln(vocabulary), the loss of a uniform guess. Under the story model: stories 0.2,
# encyclopedia prose 0.76, uniform ids (without its byte tokens) 1.86.
WARN_NLL = 1.0
REFUSE_NLL = 1.5
# Nats per token. Stories have 1.3 to 1.5 under the story model; far below, the model has the text
# by heart, or it is a loop.
WARN_NLL_BELOW = 0.1
# Generated text whose letters are mostly of other scripts than its first tokens has drifted.
WARN_SCRIPT_SHARE = 0.5
LOGIT_BYTES = 2**28  # logits of one batch of windows, when their likelihood is asked for

Verdict = Literal["ok", "warning", "refused"]


class QualityReport(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What is known of a calibration set before it is used."""

    source: str
    samples: int
    length: int
    token_coverage: float = Field(description="Distinct ids over the tokenizer's ordinary ids.")
    distinct_in_window: dict[int, float] = Field(
        description="By n: distinct n-grams over n-grams in a window, mean over windows."
    )
    distinct_in_set: dict[int, float] = Field(description="By n: the same over the whole set.")
    repetitive_windows: float = Field(
        description="Share of windows more than half of which is one n-gram, n up to 4."
    )
    duplicate_windows: int = Field(description="Windows that are copies of an earlier one.")
    scripts: dict[str, float] = Field(description="Share of each script among the letters.")
    mean_nll: float = Field(description="Nats per predicted token under the float model.")
    image_windows: int | None = Field(
        None, description="Windows with an image, of a model that reads images."
    )
    image_tokens: int | None = Field(None, description="Tokens of each that are the image's.")
    verdict: Verdict
    reasons: list[str] = Field(description="Why it is not ok, in words; empty where it is.")

    def require_usable(self) -> None:
        """Do nothing unless the set was refused.

        Raises:
            InputError: The verdict is ``refused``.
        """
        if self.verdict == "refused":
            raise InputError(
                f"{self.source} must give usable text",
                key="calibration.source",
                found="; ".join(self.reasons),
                remedy="change source, path or samples",
            )


def judged(
    calibration_set: CalibrationSet,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | StreamedModel,
) -> tuple[QualityReport, Float64[Tensor, " samples"]]:
    """Return what is known of a calibration set that may be used, and its windows' `window_nll`.

    Doubts that do not forbid it are logged as warnings.

    Args:
        calibration_set: At least four tokens a window.
        tokenizer: The model's tokenizer.
        model: The float model in eval mode, or read block by block.

    Raises:
        InputError: The set is degenerate.
        NonFiniteError: The model's logits are.
    """
    nll = window_nll(model, calibration_set.windows)
    quality = quality_report(calibration_set, tokenizer, nll.mean().item())
    if getattr(model.config, "vision_config", None) is not None:
        images = calibration_set.images
        told = (0, 0) if images is None else (len(images), int((~images.is_text).sum()))
        update = {"image_windows": told[0], "image_tokens": told[1]}
        quality = quality.model_copy(update=update)
    quality.require_usable()
    for reason in quality.reasons:
        log.warning("calibration set: %s", reason)
    return quality, nll


def quality_report(
    calibration_set: CalibrationSet, tokenizer: PreTrainedTokenizerBase, mean_nll: float
) -> QualityReport:
    """Return what is known of a calibration set, and whether it may be used.

    Args:
        calibration_set: At least four tokens a window.
        tokenizer: The model's tokenizer.
        mean_nll: Nats per predicted token under the float model, the mean of ``window_nll``.
    """
    ids = calibration_set.input_ids
    if calibration_set.images is not None:
        ids = calibration_set.images.text  # one token stands for all of an image
    ordinary = ordinary_token_ids(tokenizer)
    vocabulary = len(ordinary)
    distinct_ids = int(torch.isin(ids.unique(), ordinary).sum())
    ngrams = ngram_statistics(ids)
    scripts = _script_shares(calibration_set, tokenizer)
    duplicates = duplicate_windows(ids)
    repetitive = _repetitive(ngrams)
    refusals = _refusals(ngrams, repetitive, duplicates / len(ids))
    warnings = _warnings(ngrams, repetitive, duplicates)
    reachable = distinct_ids / min(vocabulary, ids.numel())
    if reachable < WARN_COVERAGE:
        warnings.append(f"only {distinct_ids} different tokens of {vocabulary} occur")
    worse, warning = _nll_reasons(mean_nll, vocabulary, calibration_set.source)
    refusals += worse
    warnings += warning
    warnings += _drift(calibration_set, scripts)
    return QualityReport(
        source=calibration_set.source,
        samples=len(ids),
        length=calibration_set.input_ids.shape[1],
        token_coverage=distinct_ids / vocabulary,
        distinct_in_window={n: s.distinct_in_window for n, s in ngrams.items()},
        distinct_in_set={n: s.distinct_in_set for n, s in ngrams.items()},
        repetitive_windows=repetitive,
        duplicate_windows=duplicates,
        scripts=scripts,
        mean_nll=mean_nll,
        verdict="refused" if refusals else "warning" if warnings else "ok",
        reasons=refusals + warnings,
    )


def _script_shares(
    calibration_set: CalibrationSet, tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    texts = tokenizer.batch_decode(calibration_set.input_ids.tolist(), skip_special_tokens=True)
    counts = count_scripts("".join(texts))
    return {script: count / counts.total() for script, count in counts.most_common()}


def _repetitive(ngrams: dict[int, NgramStatistics]) -> float:
    covered = [statistics.covered for statistics in ngrams.values()]
    union = covered[0].logical_or(covered[0])
    for windows in covered[1:]:
        union = union.logical_or(windows)
    return union.double().mean().item()


def _refusals(
    ngrams: dict[int, NgramStatistics], repetitive: float, duplicates: float
) -> list[str]:
    reasons = []
    in_window, in_set = ngrams[4].distinct_in_window, ngrams[4].distinct_in_set
    if in_window < REFUSE_DISTINCT_4:
        reasons.append(
            f"within a window only {in_window:.1%} of the 4-grams are distinct (at least "
            f"{REFUSE_DISTINCT_4:.0%} needed)"
        )
    elif in_set < REFUSE_DISTINCT_4_IN_SET:
        reasons.append(
            f"over the whole set only {in_set:.1%} of the 4-grams are distinct (at least "
            f"{REFUSE_DISTINCT_4_IN_SET:.0%} needed)"
        )
    if repetitive > REFUSE_REPETITIVE:
        reasons.append(f"{repetitive:.0%} of the windows are mostly one repeated phrase")
    if duplicates > REFUSE_DUPLICATES:
        reasons.append(f"{duplicates:.0%} of the windows are copies of an earlier one")
    return reasons


def _warnings(ngrams: dict[int, NgramStatistics], repetitive: float, duplicates: int) -> list[str]:
    reasons = []
    in_window = ngrams[4].distinct_in_window
    if REFUSE_DISTINCT_4 <= in_window < WARN_DISTINCT_4:
        reasons.append(f"within a window only {in_window:.0%} of the 4-grams are distinct")
    if WARN_REPETITIVE < repetitive <= REFUSE_REPETITIVE:
        reasons.append(f"{repetitive:.0%} of the windows are mostly one repeated phrase")
    if duplicates:
        reasons.append(f"{duplicates} windows are copies of an earlier one")
    return reasons


def _nll_reasons(mean_nll: float, vocabulary: int, source: str) -> tuple[list[str], list[str]]:
    chance = math.log(vocabulary)
    if mean_nll > REFUSE_NLL * chance and source != "random":
        return [
            f"the float model predicts it far worse than chance ({mean_nll:.2f} nats per token, "
            f"chance {chance:.2f}): text and tokenizer may not belong to this model"
        ], []
    if mean_nll > WARN_NLL * chance:
        return [], [
            f"the float model predicts it worse than chance ({mean_nll:.2f} nats per token, chance "
            f"{chance:.2f})"
        ]
    if mean_nll < WARN_NLL_BELOW:
        return [], [f"the float model has it by heart ({mean_nll:.3f} nats per token)"]
    return [], []


def _drift(calibration_set: CalibrationSet, scripts: dict[str, float]) -> list[str]:
    begun_in = calibration_set.facts.get("scripts") or []
    share = sum(scripts.get(script, 0.0) for script in begun_in)
    if begun_in and share < WARN_SCRIPT_SHARE:
        return [f"text was begun in {', '.join(begun_in)}, but only {share:.0%} of its letters are"]
    return []


def likelihood_batch_size(config: PretrainedConfig, length: int) -> int:
    """Return how many windows are judged at once: a function of the shapes alone."""
    return max(1, LOGIT_BYTES // (4 * length * config.get_text_config().vocab_size))


@torch.no_grad()
def window_nll(
    model: PreTrainedModel | StreamedModel,
    input_ids: Int64[Tensor, "samples length"] | ImageWindows,
) -> Float64[Tensor, " samples"]:
    """Return each window's mean negative log-likelihood in nats per predicted token.

    The first token of a window is context only.

    Args:
        model: Float model in eval mode, or read block by block: the numbers are the same.
        input_ids: At least two tokens a window.

    Raises:
        NonFiniteError: A window's likelihood is NaN or infinite.
    """
    batch_size = likelihood_batch_size(model.config, input_ids.shape[1])
    states = (
        walked(model, input_ids, batch_size=batch_size)
        if isinstance(model, StreamedModel)
        else None
    )
    means = []
    for number, batch in enumerate(input_ids.split(batch_size)):
        if states is None:
            logits = model(**model_inputs(batch.to(model.device)), use_cache=False).logits
        else:
            logits = states.logits(number)
        targets = of_text(token_ids(batch)[:, 1:], batch, 1)
        for row, ids in zip(logits, targets, strict=True):  # one by one: a second copy is a row's
            predicted = of_text(row[None, :-1], batch, 1)[0]
            losses = functional.cross_entropy(
                predicted.float(), ids.to(row.device), reduction="none"
            )
            means.append(losses.double().mean().cpu())
    nll = torch.stack(means)
    if not nll.isfinite().all():
        window = int((~nll.isfinite()).nonzero()[0])
        raise NonFiniteError(
            f"the float model must give a finite likelihood; calibration window {window} has "
            f"{nll[window].item()}: check its weights and model.dtype"
        )
    return nll
