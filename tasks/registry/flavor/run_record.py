"""What the MLflow run of an export tells of its flow: params, series by step, source, times."""

import math
import time
from dataclasses import dataclass, field

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

# MLflow takes at most 1000 entries in one call, of which 100 params and 100 tags.
METRICS_AT_ONCE, OTHERS_AT_ONCE = 800, 100
LONGEST_VALUE = 6000  # characters of a param
NOTE_TAG = "mlflow.note.content"  # the description on the page of a run


@dataclass(frozen=True)
class RunRecord:
    """What is told of the flow that made an export, beside its evaluation."""

    started: float | None = None  # seconds since the epoch; None: when it is registered
    params: dict[str, str] = field(default_factory=dict)
    series: dict[str, dict[int, float]] = field(default_factory=dict)  # by step: blocks, tokens
    tags: dict[str, str] = field(default_factory=dict)  # of the run alone: its source, its address
    description: str = ""  # Markdown, for the pages of the run and of the version

    @property
    def start_time(self) -> int:
        """When the flow began, as MLflow counts."""
        return int(1000 * (time.time() if self.started is None else self.started))


def log_record(client: MlflowClient, run_id: str, record: RunRecord) -> None:
    """Write a record into a run, as far as it is not there.

    Params and series stay those of the flow that wrote them first: MLflow changes no param, and all
    that leads to the same payload has the same blocks. The tags become those of the newest.
    """
    known = client.get_run(run_id).data
    metrics = [
        Metric(name, value, record.start_time, step)
        for name, points in sorted(record.series.items())
        if name not in known.metrics
        for step, value in sorted(points.items())
        if math.isfinite(value)
    ]
    params = [
        Param(name, value[:LONGEST_VALUE])
        for name, value in sorted(record.params.items())
        if name not in known.params
    ]
    told = record.tags | ({NOTE_TAG: record.description} if record.description else {})
    tags = [RunTag(name, value) for name, value in told.items() if known.tags.get(name) != value]
    while metrics or params or tags:
        client.log_batch(
            run_id,
            metrics=metrics[:METRICS_AT_ONCE],
            params=params[:OTHERS_AT_ONCE],
            tags=tags[:OTHERS_AT_ONCE],
            synchronous=True,
        )
        metrics, params = metrics[METRICS_AT_ONCE:], params[OTHERS_AT_ONCE:]
        tags = tags[OTHERS_AT_ONCE:]
