"""Scores of named tasks item by item, and two models compared in pairs of the same item.

Both tests are on the items where the models differ: McNemar's exact test, whose null hypothesis is
that either model is as likely to be the one that is right, and the paired standard error of the
accuracy drop. No torch here.
"""

from pydantic import BaseModel

from normtweak_core.evaluate.scores import Estimate, named
from normtweak_core.lazy import lazy

stats = lazy("scipy.stats")  # half a second to import, and most runs have no tasks

ACCURACIES = ("acc", "acc_norm")


class TaskScores(BaseModel, frozen=True):
    """One model on one task; values are in the order of the items."""

    task: str
    version: str  # of the task in lm-eval
    values: dict[str, list[float]]  # acc and acc_norm: 0 or 1; loglikelihood: of the answer, nats

    @property
    def num_items(self) -> int:
        """How many items were answered."""
        return len(self.values["acc"])

    def estimates(self) -> dict[str, Estimate]:
        """Return each metric with its standard error; items are the sampling unit."""
        found = {name: Estimate.of(self.values[name]) for name in ACCURACIES if name in self.values}
        if "loglikelihood" in self.values:
            found["perplexity"] = Estimate.of([-x for x in self.values["loglikelihood"]]).exp()
        return found

    def metrics(self, whose: str) -> dict[str, float]:
        """Return flat metric names and values, such as ``piqa/acc/float``."""
        flat: dict[str, float] = {}
        for metric, estimate in self.estimates().items():
            flat |= named(f"{self.task}/{metric}/{whose}", estimate)
        return flat


class TaskComparison(BaseModel, frozen=True):
    """A quantized model beside its float model, on the same items of one task."""

    float_scores: TaskScores
    quantized_scores: TaskScores

    def drop(self, metric: str = "acc") -> Estimate:
        """Return the float accuracy less the quantized one, with its paired standard error."""
        return Estimate.of([a - b for a, b in self._pairs(metric)])

    def differing(self, metric: str = "acc") -> tuple[int, int]:
        """Return how many items only the float, and only the quantized model answers rightly."""
        pairs = self._pairs(metric)
        return sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)

    def mcnemar(self, metric: str = "acc") -> float:
        """Return the two-sided p-value of McNemar's exact test; 1 where the models agree."""
        lost, won = self.differing(metric)
        return float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0

    def metrics(self) -> dict[str, float]:
        """Return flat metric names and values of both models and of their difference."""
        flat = self.float_scores.metrics("float") | self.quantized_scores.metrics("quantized")
        task = self.float_scores.task
        for metric in ACCURACIES:
            if metric in self.float_scores.values:
                flat |= named(f"{task}/{metric}/drop", self.drop(metric))
                flat[f"{task}/{metric}/mcnemar_p"] = self.mcnemar(metric)
                lost, won = self.differing(metric)
                flat |= {f"{task}/{metric}/lost": float(lost), f"{task}/{metric}/won": float(won)}
        flat[f"{task}/items"] = float(self.float_scores.num_items)
        return flat

    def _pairs(self, metric: str) -> list[tuple[float, float]]:
        both = (self.float_scores.values[metric], self.quantized_scores.values[metric])
        return list(zip(*both, strict=True))
