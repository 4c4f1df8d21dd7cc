"""Thresholds that an export has to keep to before an alias moves to it; no torch here."""

from pydantic import BaseModel, Field


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
    return failures
