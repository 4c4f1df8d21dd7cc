"""The MLflow run of a training: its curves, while it runs."""

import os
import time
from types import TracebackType
from typing import Any, Self

from normtweak_core.lazy import lazy
from tasks.registry.database import make_database
from tasks.registry.reachable import VARIABLE

entities = lazy("mlflow.entities")
mlflow = lazy("mlflow")

SECONDS_BETWEEN_WRITES = 5.0
ORIGIN_TAG = "training_origin"


class TrainingRun:
    """Writes metrics by step, many at a time; a training that is started again goes on in its run.

    Use as a context manager: the run ends FINISHED, or FAILED or KILLED by what ended the block.
    """

    def __init__(self, experiment: str, origin: str, params: dict[str, Any], tags: dict[str, str]):
        """Find the run of this training or make one.

        Args:
            experiment: Name of the experiment, that of the registered model.
            origin: Hash of what the training starts from.
            params: What the page of the run shows as its parameters.
            tags: Its source, and where Prefect shows the flow run.
        """
        make_database(os.environ[VARIABLE])
        self._client = mlflow.MlflowClient()
        self._buffer: list[tuple[int, dict[str, float]]] = []
        self._written = time.monotonic()
        found = self._client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else self._client.create_experiment(experiment)
        runs = self._client.search_runs([place], f"tags.{ORIGIN_TAG} = '{origin}'")
        run = (
            runs[0]
            if runs
            else self._client.create_run(
                place, tags={ORIGIN_TAG: origin}, run_name=f"{experiment} training"
            )
        )
        self.run_id = run.info.run_id
        self._client.update_run(self.run_id, status="RUNNING")
        entries = [entities.Param(name, str(value)) for name, value in sorted(params.items())]
        known = [entities.RunTag(name, value) for name, value in tags.items()]
        self._client.log_batch(self.run_id, params=entries, tags=known)
        history = self._client.get_metric_history(self.run_id, "train/loss") if runs else []
        self._last = max((entry.step for entry in history), default=0)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Note the metrics of a step; those of steps that were written before are left out."""
        if step > self._last:
            self._buffer.append((step, metrics))
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self._flush()

    def _flush(self) -> None:
        now = int(time.time() * 1000)
        entries = [
            entities.Metric(name, value, now, step)
            for step, metrics in self._buffer
            for name, value in metrics.items()
        ]
        for start in range(0, len(entries), 1000):  # MLflow takes no more at once
            self._client.log_batch(self.run_id, metrics=entries[start : start + 1000])
        if self._buffer:
            self._last = self._buffer[-1][0]
        self._buffer, self._written = [], time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flush()
        if error is None:
            status = "FINISHED"
        else:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
        self._client.set_terminated(self.run_id, status)
