"""The drift of a run as a table: a row a stage, block and channel, checked on write and on read."""

import io
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pandera.errors
import pandera.pandas as pa
import pyarrow
from pandera.typing.pandas import Series

from normtweak_core.evaluate.channel_drift import ChannelDrift
from tasks.engine.artifacts import write_atomically

Stage = Literal["round to nearest", "quantized", "norm tweak", "final tune"]
STAGES: tuple[Stage, ...] = ("round to nearest", "quantized", "norm tweak", "final tune")

_FINITE = {"gt": -np.inf, "lt": np.inf}
_VARIANCE = {"ge": 0, "lt": np.inf}
_ROUNDING = 1e-9  # of what is compared: sums in float64 over at most some billions of tokens


class DriftTableError(ValueError):
    """A drift table is not what its schema says: make it again."""


class DriftTable(pa.DataFrameModel):
    """One row a channel behind a block at a stage; statistics are over the calibration tokens."""

    stage: Series[str] = pa.Field(isin=STAGES, description="After which stage; see the stages.")
    block: Series[int] = pa.Field(ge=0, description="Index of the decoder layer.")
    channel: Series[int] = pa.Field(ge=0, description="Index in the hidden state behind it.")
    mean_float: Series[float] = pa.Field(**_FINITE, description="Mean of the float stream x_f.")
    variance_float: Series[float] = pa.Field(**_VARIANCE, description="Its variance.")
    mean: Series[float] = pa.Field(**_FINITE, description="Mean of the quantized stream x_q.")
    variance: Series[float] = pa.Field(**_VARIANCE, description="Its variance.")
    square_error: Series[float] = pa.Field(**_VARIANCE, description="Mean of (x_q - x_f)^2.")

    class Config:
        """No column more, none less, in this order."""

        strict = True
        coerce = True
        ordered = True
        unique = ("stage", "block", "channel")

    @pa.dataframe_check(error="square_error not below (mean - mean_float)^2")
    @classmethod
    def error_holds_the_shift(cls, table: pd.DataFrame) -> "pd.Series[bool]":
        """No mean of squares lies below the square of the mean."""
        shift = (table["mean"] - table["mean_float"]) ** 2
        room = _ROUNDING * (table["square_error"] + table["mean_float"] ** 2)
        return table["square_error"] + room >= shift

    @pa.dataframe_check(error="as many rows as stages x blocks x channels")
    @classmethod
    def is_complete(cls, table: pd.DataFrame) -> bool:
        """Every stage has every channel behind every block."""
        sizes = [table[name].nunique() for name in ("stage", "block", "channel")]
        return len(table) == int(np.prod(sizes)) > 0


def drift_frame(stages: Mapping[Stage, ChannelDrift]) -> pd.DataFrame:
    """Return the table of some stages of one model."""
    tables = []
    for stage, drift in stages.items():
        block, channel = np.indices(drift.mean.shape)
        columns = {"stage": stage, "block": block.ravel(), "channel": channel.ravel()}
        columns |= {field.name: getattr(drift, field.name).ravel() for field in fields(drift)}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def stages_of(table: pd.DataFrame) -> dict[Stage, ChannelDrift]:
    """Return what a valid table was made of."""
    found: dict[Stage, ChannelDrift] = {}
    for stage, rows in table.groupby("stage", sort=False):
        ordered = rows.sort_values(["block", "channel"])
        shape = (ordered["block"].nunique(), -1)
        found[stage] = ChannelDrift(
            **{
                field.name: ordered[field.name].to_numpy().reshape(shape)
                for field in fields(ChannelDrift)
            }
        )
    return found


def validate_drift_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table, its columns coerced to their types.

    Raises:
        DriftTableError: A column is missing, unknown or of another type, a stage is unknown, a
            channel of a block repeats or is missing, or a statistic is not finite or cannot be.
    """
    try:
        return DriftTable.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases
        # A column's own failure first: what is said of whole rows may follow from it.
        of_columns = cases[cases["schema_context"] == "Column"]
        first = (of_columns if len(of_columns) else cases).iloc[0]
        what = f"column {first['column']}" if len(of_columns) else "rows"
        raise DriftTableError(
            f"drift table: {what} must satisfy {first['check']}; found "
            f"{str(first['failure_case'])[:80]} ({len(cases)} failures): make the table again"
        ) from error


def write_drift_table(path: Path, frame: pd.DataFrame) -> None:
    """Write the table as parquet once it is valid; equal tables give equal bytes.

    Raises:
        DriftTableError: The table is not valid; nothing is written.
    """
    buffer = io.BytesIO()
    validate_drift_table(frame).to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())


def read_drift_table(path: Path) -> pd.DataFrame:
    """Return a table as it was written.

    Raises:
        DriftTableError: The file is missing, torn, or its table is not valid.
    """
    try:
        frame = pd.read_parquet(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DriftTableError(
            f"drift table {path} must be a parquet file; {error}: make the table again"
        ) from error
    return validate_drift_table(frame)


# The stages whose drift a block or the final tune measures, as its file names them.
QUANTIZED, TWEAKED, TUNED = "quantized", "tweaked", "tuned"
