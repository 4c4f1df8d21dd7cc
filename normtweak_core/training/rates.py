"""Learning rate and weight decay over a training, in one stage or two."""

import math
from dataclasses import dataclass

BETAS = (0.9, 0.95)  # of AdamW; BitNet b1.58's, from its training tips
WARMUP_SHARE = 0.02  # of all steps: a float checkpoint needs only a short one for Adam's moments


@dataclass(frozen=True)
class Rates:
    """One cosine; or, after BitNet's training tips, a constant rate and a lower, falling one.

    Source: two stages with the decay only in the first, BitNet b1.58 2B4T (arXiv
    2504.12285). The shape inside the stages is not published: ours.
    """

    steps: int
    lr: float
    lr_second: float | None = None
    weight_decay: float = 0.0

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        warmup = max(1, round(WARMUP_SHARE * self.steps))
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.lr_second is None:
            return self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        if not self._is_second(step):
            return self.lr
        return self.lr_second * 2 * (1 - step / self.steps)

    def weight_decay_at(self, step: int) -> float:
        """Return the weight decay of a step."""
        return 0.0 if self.lr_second is not None and self._is_second(step) else self.weight_decay

    def _is_second(self, step: int) -> bool:
        return 2 * step >= self.steps
