"""The calibration set as a table people read: one row a window, checked on write and on read."""

from typing import TYPE_CHECKING

import pandas as pd
import pandera.pandas as pa
from pandera.typing.pandas import Series

from tasks.tables.frame import Schema, Table

if TYPE_CHECKING:  # a cached table is checked without importing torch
    from transformers import PreTrainedTokenizerBase

    from normtweak_core.calibration.sets import CalibrationSet

SOURCES = ("generated", "text", "dataset", "random")


class CalibrationTable(Schema):
    """One row a window of the calibration set."""

    sample_id: Series[int] = pa.Field(unique=True, ge=0, description="Row of the set.")
    input_ids: Series[object] = pa.Field(description="Token ids of the window.")
    n_tokens: Series[int] = pa.Field(gt=0, description="Number of token ids.")
    text: Series[str] = pa.Field(description="The window, decoded.")
    nll: Series[float] = pa.Field(
        gt=-1e-6, lt=float("inf"), description="Nats per predicted token under the float model."
    )
    source: Series[str] = pa.Field(isin=SOURCES, description="calibration.source.")


def calibration_table(vocab_size: int) -> Table:
    """Return the table of windows of a model whose embedding has ``vocab_size`` rows."""
    in_vocabulary = pa.Check(
        lambda ids: 0 <= min(ids, default=0) and max(ids, default=0) < vocab_size,
        element_wise=True,
        error=f"ids from 0 to {vocab_size - 1}",
    )
    counted = pa.Check(
        lambda table: table["input_ids"].map(len) == table["n_tokens"],
        error="n_tokens equal to the number of input_ids",
    )
    schema = CalibrationTable.to_schema().update_column("input_ids", checks=[in_vocabulary])
    schema.checks = [counted]
    return Table(schema, "calibration table")


def calibration_frame(
    calibration_set: "CalibrationSet", tokenizer: "PreTrainedTokenizerBase", nll: list[float]
) -> pd.DataFrame:
    """Return the table of a calibration set.

    Args:
        calibration_set: The windows.
        tokenizer: Decodes them, special tokens included.
        nll: Of each window (``likelihood.window_nll``).
    """
    rows = calibration_set.input_ids.tolist()
    return pd.DataFrame(
        {
            "sample_id": range(len(rows)),
            "input_ids": pd.Series(rows, dtype=object),
            "n_tokens": [len(row) for row in rows],
            "text": tokenizer.batch_decode(rows),
            "nll": nll,
            "source": calibration_set.source,
        }
    )
