"""What an evaluation found window by window, as a version keeps it: what two are compared by."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normtweak_core.evaluate.bounds import least_windows, mean_bound
from normtweak_core.evaluate.scores import Estimate
from normtweak_core.scratch import scratch_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FACTS = "evaluation.json"  # among the reports of a version
WINDOWS, MEASURED = "windows", "measured_on"  # its keys


@dataclass(frozen=True)
class WindowLosses:
    """The mean of each window, in nats per token."""

    nll: list[float]
    kl: list[float]  # from the float model

    @property
    def is_finite(self) -> bool:
        """Whether there are windows and every number of them is one."""
        return bool(self.nll and self.kl) and all(map(math.isfinite, self.nll + self.kl))

    def as_json(self) -> dict[str, list[float]]:
        """Return what `FACTS` holds under `WINDOWS`."""
        return {"nll": self.nll, "kl": self.kl}


@dataclass(frozen=True)
class Difference:
    """A new version less the present one, paired by window, in nats per token."""

    name: str
    mean: float
    bound: float  # the true difference lies below with the confidence asked for

    def __str__(self) -> str:
        """Return the difference in words."""
        return f"{self.name} {self.mean:+.3g} (at most {self.bound:+.3g})"


def differences(new: WindowLosses, old: WindowLosses, confidence: float) -> list[Difference]:
    """Return how much worse a version is than another, in loss and in KL; negative: better.

    Args:
        new: The one.
        old: The other, on the same windows.
        confidence: Of the bounds, one-sided.
    """
    found = []
    for name, ours, theirs in (("loss", new.nll, old.nll), ("KL", new.kl, old.kl)):
        one = Estimate.of([a - b for a, b in zip(ours, theirs, strict=True)])
        bound = mean_bound(one.mean, one.stderr, len(ours), confidence)
        found.append(Difference(name, one.mean, bound))
    return found


def too_few(windows: int, confidence: float) -> str:
    """Return in words that so few windows show nothing; empty: they are enough."""
    least = least_windows(confidence)
    return f"{windows} windows show nothing, {least} are needed" if windows < least else ""


def stored_losses(
    client: "MlflowClient", version: "ModelVersion", measured_on: str
) -> WindowLosses | None:
    """Return the losses that a version keeps; None: it keeps none of this evaluation."""
    if not version.run_id:
        return None
    listed = client.list_artifacts(version.run_id, "reports")
    if f"reports/{FACTS}" not in {file.path for file in listed}:
        return None
    with scratch_folder("losses") as folder:
        path = Path(client.download_artifacts(version.run_id, f"reports/{FACTS}", str(folder)))
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if facts.get(MEASURED) != measured_on or WINDOWS not in facts:
        return None
    return WindowLosses(**facts[WINDOWS])
