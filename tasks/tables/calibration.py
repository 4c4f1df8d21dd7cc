"""The calibration set as a table people read: one row a window, checked on write and on read."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pandera.errors
import pandera.pandas as pa
import pyarrow
from pandera.typing.pandas import Series

if TYPE_CHECKING:  # a cached table is checked without importing torch
    from transformers import PreTrainedTokenizerBase

    from normtweak_core.calibration.sets import CalibrationSet

SOURCES = ("generated", "text", "dataset", "random")


class CalibrationTableError(ValueError):
    """A calibration table is not what its schema says: make it again."""


class CalibrationTable(pa.DataFrameModel):
    """One row a window of the calibration set."""

    sample_id: Series[int] = pa.Field(unique=True, ge=0, description="Row of the set.")
    input_ids: Series[object] = pa.Field(description="Token ids of the window.")
    n_tokens: Series[int] = pa.Field(gt=0, description="Number of token ids.")
    text: Series[str] = pa.Field(description="The window, decoded.")
    nll: Series[float] = pa.Field(
        gt=-1e-6, lt=float("inf"), description="Nats per predicted token under the float model."
    )
    source: Series[str] = pa.Field(isin=SOURCES, description="calibration.source.")

    class Config:
        """No column more, none less, in this order."""

        strict = True
        coerce = True
        ordered = True


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


def validate_calibration_table(frame: pd.DataFrame, vocab_size: int) -> pd.DataFrame:
    """Return the table, its columns coerced to their types.

    Args:
        frame: Not modified.
        vocab_size: Rows of the model's embedding; every id must lie below.

    Raises:
        CalibrationTableError: A column is missing, unknown or of another type, ``sample_id``
            repeats, ``n_tokens`` is not the number of ids, or an id is not in the vocabulary.
    """
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
    try:
        return schema.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases
        first = cases.iloc[0]
        raise CalibrationTableError(
            f"calibration table: column {first['column']} must satisfy {first['check']}; found "
            f"{str(first['failure_case'])[:80]} ({len(cases)} failures): make the table again"
        ) from error


def write_calibration_table(path: Path, frame: pd.DataFrame, vocab_size: int) -> None:
    """Write the table as parquet once it is valid; equal tables give equal bytes.

    Writes at ``path`` itself: who must not be left with half a file gives a temporary path.

    Raises:
        CalibrationTableError: The table is not valid; nothing is written.
    """
    validate_calibration_table(frame, vocab_size).to_parquet(path, index=False)


def read_calibration_table(path: Path, vocab_size: int) -> pd.DataFrame:
    """Return a table as it was written.

    Raises:
        CalibrationTableError: The file is missing, torn, or its table is not valid.
    """
    try:
        frame = pd.read_parquet(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise CalibrationTableError(
            f"calibration table {path} must be a parquet file; {error}: make the table again"
        ) from error
    return validate_calibration_table(frame, vocab_size)
