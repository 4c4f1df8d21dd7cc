"""A table with a schema: checked when it is written and when it is read."""

import io
from pathlib import Path

import pandas as pd
import pandera.errors
import pandera.pandas as pa
import pyarrow

from tasks.engine.artifacts import write_atomically


class TableError(ValueError):
    """A table is not what its schema says."""


class Schema(pa.DataFrameModel):
    """The columns of a table: no more, no less, in this order, coerced to their types."""

    class Config:
        """As said above."""

        strict = True
        coerce = True
        ordered = True


class Table:
    """A kind of table, kept as parquet.

    Args:
        schema: Its columns.
        name: What people call it.
        remedy: What to do about one that is not valid.
    """

    def __init__(self, schema: pa.DataFrameSchema, name: str, remedy: str = "make the table again"):
        self.schema = schema
        self.name = name
        self.remedy = remedy

    def of(self, rows: list[dict[str, object]]) -> pd.DataFrame:
        """Return rows as a table, not yet checked."""
        return pd.DataFrame(rows, columns=list(self.schema.columns))

    def validate(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the table, its columns coerced to their types; ``frame`` is not modified.

        Raises:
            TableError: A column is missing, unknown or of another type, or a value is not what its
                column allows; the message names the first.
        """
        try:
            return self.schema.validate(frame, lazy=True)
        except pandera.errors.SchemaErrors as error:
            cases = error.failure_cases
            # A column's own failure first: what is said of whole rows may follow from it.
            of_columns = cases[cases["schema_context"] == "Column"]
            first = (of_columns if len(of_columns) else cases).iloc[0]
            what = f"column {first['column']}" if len(of_columns) else "rows"
            raise TableError(
                f"{self.name}: {what} must satisfy {first['check']}; found "
                f"{str(first['failure_case'])[:80]} ({len(cases)} failures): {self.remedy}"
            ) from error

    def write(self, path: Path, frame: pd.DataFrame) -> None:
        """Write the table as parquet once it is valid; equal tables give equal bytes.

        Raises:
            TableError: The table is not valid; nothing is written.
        """
        buffer = io.BytesIO()
        self.validate(frame).to_parquet(buffer, index=False)
        write_atomically(path, buffer.getvalue())

    def read(self, path: Path) -> pd.DataFrame:
        """Return a table as it was written.

        Raises:
            TableError: The file is missing, torn, or its table is not valid.
        """
        try:
            frame = pd.read_parquet(path)
        except (OSError, pyarrow.ArrowException) as error:
            raise TableError(
                f"{self.name} {path} must be a parquet file; {error}: {self.remedy}"
            ) from error
        return self.validate(frame)
