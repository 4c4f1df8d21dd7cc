"""Thresholds that an export has to keep to before an alias moves to it; no torch here."""

from typing import Annotated

from pydantic import BaseModel, Field

from normtweak_core.evaluate.config import EvaluationConfig, TaskName


class GateConfig(BaseModel, frozen=True, extra="forbid"):
    """What an evaluation must reach; null: not asked."""

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
        description="Largest loss of accuracy (acc) by task, as a share of its items, that the "
        "true drop must be below with the confidence asked for.",
    )
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="One-sided confidence of max_accuracy_drop."
    )


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


# Key of the gate, metric, and whether the threshold is an upper one.
THRESHOLDS = (
    ("max_perplexity_ratio", "perplexity/ratio", True),
    ("max_kl", "kl/mean", True),
    ("min_top1_agreement", "top1_agreement", False),
)


def gate_failures(config: GateConfig, metrics: dict[str, float]) -> list[str]:
    """Return one sentence for each threshold that an evaluation misses; none: it passes.

    Args:
        config: The thresholds.
        metrics: Of the evaluation, flat names.
    """
    failures = []
    for key, name, upper in THRESHOLDS:
        threshold = getattr(config, key)
        if threshold is None:
            continue
        value = metrics[name]
        missed = value > threshold if upper else value < threshold
        if missed or value != value:  # NaN keeps to nothing
            failures.append(
                f"{name} must be at {'most' if upper else 'least'} {threshold:g} (gate.{key}); "
                f"found {value:.5g}"
            )
    return failures + _drop_failures(config, metrics)


def _drop_failures(config: GateConfig, metrics: dict[str, float]) -> list[str]:
    from normtweak_core.evaluate.task_scores import drop_bound  # scipy takes its time

    failures = []
    for task, threshold in config.max_accuracy_drop.items():
        drop = metrics[f"{task}/acc/drop"]
        bound = drop_bound(drop, metrics.get(f"{task}/acc/drop_stderr"), config.confidence)
        if not bound <= threshold:
            failures.append(
                f"{task}/acc/drop must be at most {threshold:g} with confidence "
                f"{config.confidence:g} (gate.max_accuracy_drop); found {drop:.5g}, "
                f"which may be {bound:.5g}"
            )
    return failures
