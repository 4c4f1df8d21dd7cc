"""The drift of a run as a table: a row a stage, block and channel, checked on write and on read."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.typing.pandas import Series

from normtweak_core.evaluate.channel_drift import ChannelDrift
from tasks.tables.frame import Schema, Table

Stage = Literal["round to nearest", "quantized", "norm tweak", "block training", "final tune"]
STAGES: tuple[Stage, ...] = get_args(Stage)
# The stages whose drift a block or the final tune measures, as its file names them.
QUANTIZED, TWEAKED, TRAINED, TUNED = "quantized", "tweaked", "trained", "tuned"

_FINITE = {"gt": -np.inf, "lt": np.inf}
_VARIANCE = {"ge": 0, "lt": np.inf}
_ROUNDING = 1e-9  # of what is compared: sums in float64 over at most some billions of tokens


class DriftTable(Schema):
    """One row a channel behind a block at a stage; statistics are over the calibration tokens."""

    stage: Series[str] = pa.Field(isin=STAGES, description="After which stage; see the stages.")
    block: Series[int] = pa.Field(ge=0, description="Index of the decoder layer.")
    channel: Series[int] = pa.Field(ge=0, description="Index in the hidden state behind it.")
    mean_float: Series[float] = pa.Field(**_FINITE, description="Mean of the float stream x_f.")
    variance_float: Series[float] = pa.Field(**_VARIANCE, description="Its variance.")
    mean: Series[float] = pa.Field(**_FINITE, description="Mean of the quantized stream x_q.")
    variance: Series[float] = pa.Field(**_VARIANCE, description="Its variance.")
    square_error: Series[float] = pa.Field(**_VARIANCE, description="Mean of (x_q - x_f)^2.")

    class Config(Schema.Config):
        """What no two rows share."""

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


DRIFT = Table(DriftTable.to_schema(), "drift table")


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
