"""The table of an evaluation: one row a number, with its standard error and what it rests on."""

import json

import pandas as pd
import pandera.pandas as pa
from pandera.typing.pandas import Series

from normtweak_core.evaluate.metric import read_metrics
from tasks.tables.frame import Schema, Table


class EvaluationTable(Schema):
    """The table of one evaluation."""

    measure: Series[str] = pa.Field(unique=True)
    value: Series[float]
    stderr: Series[float] = pa.Field(nullable=True, ge=0)  # NaN: undefined, or not an estimate
    count: Series[int] = pa.Field(ge=1)  # windows or items
    unit: Series[str] = pa.Field(isin=["windows", "items"])
    task: Series[str]  # empty: the text
    task_version: Series[str]
    seed: Series[int] = pa.Field(ge=0)
    versions: Series[str]  # of the libraries, as JSON


EVALUATION = Table(EvaluationTable.to_schema(), "evaluation table", "evaluate again")


def evaluation_frame(
    metrics: dict[str, float],
    windows: int,
    tasks: dict[str, tuple[str, int]],
    seed: int,
    versions: dict[str, str],
) -> pd.DataFrame:
    """Return the table of an evaluation.

    Args:
        metrics: Flat names and values; a standard error lies beside its value.
        windows: How many the text gave.
        tasks: Version and number of items by task.
        seed: Of the run.
        versions: Of the libraries, by name.
    """
    rows = []
    # By name: a result from the cache tells its metrics in another order than a fresh one.
    for name, metric in sorted(read_metrics(metrics).items()):
        task = next((task for task in tasks if name.startswith(f"{task}/")), "")
        version, count = tasks.get(task, ("", windows))
        rows.append(
            {
                "measure": name,
                "value": metric.value,
                "stderr": float("nan") if metric.stderr is None else metric.stderr,
                "count": count,
                "unit": "items" if task else "windows",
                "task": task,
                "task_version": version,
                "seed": seed,
                "versions": json.dumps(versions, sort_keys=True),
            }
        )
    return EVALUATION.of(rows)
