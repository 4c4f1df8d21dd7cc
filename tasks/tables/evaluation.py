"""The table of an evaluation: one row a number, with its standard error and what it rests on."""

import io
import json
from pathlib import Path

import pandas as pd
import pandera.errors
import pandera.pandas as pa
import pyarrow
from pandera.typing.pandas import Series

from tasks.engine.artifacts import write_atomically


class EvaluationTableError(ValueError):
    """A table that is not what an evaluation writes."""


class EvaluationTable(pa.DataFrameModel):
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

    class Config:
        """No other columns, and types as above."""

        strict = True
        coerce = True


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
    for name, value in sorted(metrics.items()):
        if name.endswith("stderr"):
            continue
        task = next((task for task in tasks if name.startswith(f"{task}/")), "")
        version, count = tasks.get(task, ("", windows))
        rows.append(
            {
                "measure": name,
                "value": value,
                "stderr": metrics.get(stderr_name(name), float("nan")),
                "count": count,
                "unit": "items" if task else "windows",
                "task": task,
                "task_version": version,
                "seed": seed,
                "versions": json.dumps(versions, sort_keys=True),
            }
        )
    return pd.DataFrame(rows, columns=list(EvaluationTable.to_schema().columns))


def stderr_name(name: str) -> str:
    """Return what the standard error of a flat metric is called."""
    return f"{name.removesuffix('/mean')}/stderr" if name.endswith("/mean") else f"{name}_stderr"


def validate_evaluation_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table, its columns coerced to their types.

    Raises:
        EvaluationTableError: A column is missing, unknown or of another type, a measure repeats, a
            value is not a number, or a standard error is negative.
    """
    try:
        return EvaluationTable.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases
        first = cases.iloc[0]
        raise EvaluationTableError(
            f"evaluation table: column {first['column']} must satisfy {first['check']}; found "
            f"{str(first['failure_case'])[:80]} ({len(cases)} failures): evaluate again"
        ) from error


def write_evaluation_table(path: Path, frame: pd.DataFrame) -> None:
    """Write the table as parquet once it is valid; equal tables give equal bytes.

    Raises:
        EvaluationTableError: The table is not valid; nothing is written.
    """
    buffer = io.BytesIO()
    validate_evaluation_table(frame).to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())


def read_evaluation_table(path: Path) -> pd.DataFrame:
    """Return a table as it was written.

    Raises:
        EvaluationTableError: The file is missing, torn, or its table is not valid.
    """
    try:
        frame = pd.read_parquet(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise EvaluationTableError(
            f"evaluation table {path} must be a parquet file; {error}: evaluate again"
        ) from error
    return validate_evaluation_table(frame)
