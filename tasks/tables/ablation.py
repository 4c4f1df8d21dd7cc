"""The cells of an ablation as a table, checked on write and on read."""

import io
import math
from pathlib import Path
from typing import get_args

import pandas as pd
import pandera.errors
import pandera.pandas as pa
import pyarrow
from pandera.typing.pandas import Series

from normtweak_core.ablation.config import STUDIES
from normtweak_core.tweak.report import Outcome
from tasks.engine.artifacts import write_atomically

BASE = "base"
TUNES = (*get_args(Outcome), "off")

_POSITIVE = {"gt": 0, "lt": math.inf}
_SHARE = {"ge": 0, "le": 1}


class AblationTableError(ValueError):
    """A table of cells is not what its schema says: make it again."""


class AblationTable(pa.DataFrameModel):
    """One row a cell of a study; a recipe that several studies share stands in each of them."""

    study: Series[str] = pa.Field(isin=(BASE, *STUDIES), description="Which factor varies.")
    value: Series[str] = pa.Field(str_length={"min_value": 1}, description="What it is here.")
    seed: Series[int] = pa.Field(ge=0)
    is_base: Series[bool] = pa.Field(description="The recipe is the base's with this seed.")
    recipe_sha256: Series[str] = pa.Field(str_matches="^[0-9a-f]{64}$")
    export_sha256: Series[str] = pa.Field(str_matches="^[0-9a-f]{64}$")
    perplexity_float: Series[float] = pa.Field(ge=1, lt=math.inf)
    perplexity: Series[float] = pa.Field(ge=1, lt=math.inf)
    perplexity_ratio: Series[float] = pa.Field(**_POSITIVE, description="Times float.")
    # Rounding leaves the divergence of two equal models a little beside zero.
    kl: Series[float] = pa.Field(gt=-1e-6, lt=math.inf, description="Nats per token.")
    top1_agreement: Series[float] = pa.Field(**_SHARE)
    bits_per_weight: Series[float] = pa.Field(**_POSITIVE, description="As stored.")
    seconds: Series[float] = pa.Field(
        ge=0, lt=math.inf, description="Calibration, blocks and final tune when they were made."
    )
    blocks: Series[int] = pa.Field(ge=1)
    tweaks_kept: Series[int] = pa.Field(ge=0, description="Blocks whose norm tweak was kept.")
    final_tune: Series[str] = pa.Field(isin=TUNES)
    problems: Series[str] = pa.Field(
        str_length={"min_value": 1},
        description="What the blocks report to act on, a sentence each, or none.",
    )

    class Config:
        """No column more, none less, in this order."""

        strict = True
        coerce = True
        ordered = True
        unique = ("study", "value", "seed")

    @pa.dataframe_check(name="as many tweaks kept as blocks at most")
    def _tweaks_are_of_blocks(cls, frame: pd.DataFrame) -> Series[bool]:  # noqa: N805
        return frame["tweaks_kept"] <= frame["blocks"]


def validate_ablation_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table, its columns coerced to their types.

    Raises:
        AblationTableError: A column is missing, unknown or of another type, a cell occurs twice, or
            a number is not finite or out of range.
    """
    try:
        return AblationTable.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases
        of_columns = cases[cases["schema_context"] == "Column"]
        first = cases.iloc[0] if of_columns.empty else of_columns.iloc[0]
        where = "every row" if of_columns.empty else f"column {first['column']}"
        raise AblationTableError(
            f"table of cells: {where} must satisfy {first['check']}; found "
            f"{str(first['failure_case'])[:80]} ({len(cases)} failures): make the table again"
        ) from error


def write_ablation_table(path: Path, frame: pd.DataFrame) -> None:
    """Write the table as parquet once it is valid; equal tables give equal bytes.

    Raises:
        AblationTableError: The table is not valid; nothing is written.
    """
    buffer = io.BytesIO()
    validate_ablation_table(frame).to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())


def read_ablation_table(path: Path) -> pd.DataFrame:
    """Return a table as it was written.

    Raises:
        AblationTableError: The file is missing, torn, or its table is not valid.
    """
    try:
        frame = pd.read_parquet(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise AblationTableError(
            f"table of cells {path} must be a parquet file; {error}: make the table again"
        ) from error
    return validate_ablation_table(frame)
