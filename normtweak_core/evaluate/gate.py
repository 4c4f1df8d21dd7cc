"""Thresholds that an export has to keep to before an alias moves to it; no torch here.

A threshold is kept where the true value, that of all text and items like those measured, keeps to
it with the confidence asked for. What was measured on a handful of windows or items shows nothing
and passes no gate (`normtweak_core.evaluate.bounds`).
"""

import math
from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, Field

from normtweak_core.evaluate import bounds
from normtweak_core.evaluate.config import EvaluationConfig, TaskName

DEFAULT_CONFIDENCE = 0.95
LARGEST_EXPONENT = 700  # of a float64: beyond it a ratio is infinite
Bound = Callable[[dict[str, float], float], float]  # metrics, confidence


class GateConfig(BaseModel, frozen=True, extra="forbid"):
    """What an evaluation must show with confidence; null: not asked."""

    max_perplexity_ratio: float | None = Field(
        None, gt=0, description="Largest quantized perplexity, as a multiple of the float model's."
    )
    max_kl: float | None = Field(
        None, gt=0, description="Largest divergence from the float model, nats per token."
    )
    min_top1_agreement: float | None = Field(
        None, gt=0, le=1, description="Least share of positions with the float model's first token."
    )
    max_accuracy_drop: dict[TaskName, Annotated[float, Field(gt=0, le=1)]] = Field(
        {},
        description="Largest loss of accuracy (acc) by task, as a share of its items.",
    )
    confidence: float = Field(
        DEFAULT_CONFIDENCE,
        gt=0.5,
        lt=1,
        description="With which the true value must keep to each threshold, and with which a "
        "version must be no worse than the champion to take its place; one-sided.",
    )

    @property
    def asks(self) -> bool:
        """Whether any threshold is set."""
        return self.model_copy(update={"confidence": DEFAULT_CONFIDENCE}) != GateConfig()


def require_measured(gate: GateConfig, evaluation: EvaluationConfig) -> None:
    """Accept a gate whose tasks are evaluated.

    Raises:
        ValueError: A task is not.
    """
    absent = [task for task in gate.max_accuracy_drop if task not in evaluation.tasks]
    if absent:
        raise ValueError(
            f"gate.max_accuracy_drop must name evaluated tasks; {absent[0]} is not in "
            f"evaluation.tasks, which is {evaluation.tasks}: add it there"
        )


def gate_failures(config: GateConfig, metrics: dict[str, float]) -> list[str]:
    """Return one sentence for each threshold that an evaluation does not keep; none: it passes."""
    return [
        *_upper_failure(config, metrics, "max_perplexity_ratio", "perplexity/ratio", _ratio_bound),
        *_upper_failure(config, metrics, "max_kl", "kl/mean", _kl_bound),
        *_agreement_failure(config, metrics),
        *_drop_failures(config, metrics),
    ]


def _upper_failure(
    config: GateConfig, metrics: dict[str, float], key: str, name: str, bound_of: Bound
) -> list[str]:
    threshold = getattr(config, key)
    if threshold is None:
        return []
    bound = bound_of(metrics, config.confidence)
    if bound <= threshold:  # NaN keeps to nothing
        return []
    return [
        f"{name} must be at most {threshold:g} (gate.{key}); found {metrics[name]:.5g}, "
        f"{_said(bound, metrics, config)}"
    ]


def _ratio_bound(metrics: dict[str, float], confidence: float) -> float:
    mean = "nll_difference/mean"  # Student's bound is one of a mean, which a ratio is not
    bound = _window_bound(metrics[mean], metrics, "nll_difference/stderr", confidence)
    return math.inf if bound > LARGEST_EXPONENT else math.exp(bound)


def _kl_bound(metrics: dict[str, float], confidence: float) -> float:
    return _window_bound(metrics["kl/mean"], metrics, "kl/stderr", confidence)


def _agreement_failure(config: GateConfig, metrics: dict[str, float]) -> list[str]:
    threshold, mean = config.min_top1_agreement, metrics.get("top1_agreement", math.nan)
    if threshold is None:
        return []
    bound = math.nan
    if not math.isnan(mean):
        tokens = int(metrics["tokens"])
        bound = min(
            -_window_bound(-mean, metrics, "top1_agreement_stderr", config.confidence),
            # What is left where all windows agree alike: no more than independent tokens show.
            bounds.share_lower(round(mean * tokens), tokens, config.confidence),
        )
    if bound >= threshold:
        return []
    least = bounds.least_tokens(threshold, config.confidence)
    few = f"; at least {least:g} tokens are needed" if metrics["tokens"] < least else ""
    return [
        f"top1_agreement must be at least {threshold:g} (gate.min_top1_agreement); found "
        f"{mean:.5g}, {_said(bound, metrics, config)}{few}"
    ]


def _window_bound(mean: float, metrics: dict[str, float], stderr: str, confidence: float) -> float:
    return bounds.mean_bound(mean, metrics.get(stderr), int(metrics["windows"]), confidence)


def _said(bound: float, metrics: dict[str, float], config: GateConfig) -> str:
    """Return what a bound says, and how many windows it would take to say more."""
    windows, least = int(metrics["windows"]), bounds.least_windows(config.confidence)
    if windows < least:
        return f"of {windows} window{'s' * (windows != 1)}; at least {least} are needed"
    return (
        f"which with confidence {config.confidence:g} may be {bound:.5g} by its {windows} windows"
    )


def _drop_failures(config: GateConfig, metrics: dict[str, float]) -> list[str]:
    failures = []
    for task, threshold in config.max_accuracy_drop.items():
        lost, won, items = (
            int(metrics[f"{task}/{name}"]) for name in ("acc/lost", "acc/won", "items")
        )
        bound = bounds.drop_bound(lost, won, items, config.confidence)
        if bound <= threshold:
            continue
        least = bounds.least_items(threshold, config.confidence)
        few = f"; at least {least} items are needed" if items < least else ""
        failures.append(
            f"{task}/acc/drop must be at most {threshold:g} with confidence "
            f"{config.confidence:g} (gate.max_accuracy_drop); found "
            f"{metrics[f'{task}/acc/drop']:.5g}, which may be {bound:.5g} by its {items} items{few}"
        )
    return failures
