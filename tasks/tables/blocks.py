"""The blocks of a run as a table: one row a quantized linear, checked on write and on read."""

import io
import math
from pathlib import Path
from typing import get_args

import pandas as pd
import pandera.errors
import pandera.pandas as pa
import pyarrow
from pandera.typing.pandas import Series

from normtweak_core.quantize.report import BlockReport
from normtweak_core.tweak.report import Outcome
from tasks.engine.artifacts import write_atomically

OFF = "off"
OUTCOMES = (OFF, *get_args(Outcome))
BITS = (2, 3, 4, 8)

_FINITE = {"ge": 0, "lt": math.inf}


class BlockTableError(ValueError):
    """A block table is not what its schema says: make it again."""


class BlockTable(pa.DataFrameModel):
    """One row a quantized linear; the columns of its block repeat."""

    block: Series[int] = pa.Field(ge=0, description="Index of the decoder layer.")
    layer: Series[str] = pa.Field(str_length={"min_value": 1}, description="Name in the block.")
    bits: Series[int] = pa.Field(isin=BITS, description="Width of one code.")
    percdamp: Series[float] = pa.Field(ge=0, lt=math.inf, description="Damping that was needed.")
    damping_raised: Series[bool] = pa.Field(description="More than the recipe asks for.")
    ridge: Series[float] = pa.Field(
        ge=0, lt=math.inf, description="Ridge that the weight's correction needed; 0 without one."
    )
    ridge_raised: Series[bool] = pa.Field(description="More than the recipe asks for.")
    dead_columns: Series[int] = pa.Field(ge=0, description="Inputs that are always zero.")
    weight_error: Series[float] = pa.Field(**_FINITE, description="|W - Q| / |W|")
    output_error: Series[float] = pa.Field(
        **_FINITE,
        nullable=True,
        description="|(W - Q) X| / |W X|; none where the method needed no statistics of X.",
    )
    drift_rtn: Series[float] = pa.Field(
        **_FINITE, description="|x_q - x_f| / |x_f| behind the block, rounded to nearest."
    )
    drift_quantized: Series[float] = pa.Field(
        **_FINITE, description="The same after the linears were quantized."
    )
    drift_tweaked: Series[float] = pa.Field(**_FINITE, description="The same after the norm tweak.")
    tweak: Series[str] = pa.Field(isin=OUTCOMES, description="The norm tweak.")

    class Config:
        """No column more, none less, in this order."""

        strict = True
        coerce = True
        ordered = True
        unique = ("block", "layer")


def block_frame(blocks: list[BlockReport], baseline: list[BlockReport]) -> pd.DataFrame:
    """Return the table of a run.

    Args:
        blocks: The blocks of the run.
        baseline: The same blocks rounded to nearest.
    """
    rows = [
        layer.model_dump()
        | {
            "block": block.block,
            "drift_rtn": rounded.drift_quantized,
            "drift_quantized": block.drift_quantized,
            "drift_tweaked": block.drift_tweaked,
            "tweak": tweak_outcome(block),
        }
        for block, rounded in zip(blocks, baseline, strict=True)
        for layer in block.layers
    ]
    return pd.DataFrame(rows, columns=list(BlockTable.to_schema().columns))


def tweak_outcome(block: BlockReport) -> str:
    """Return what became of a block's norm tweak."""
    return OFF if block.tweak is None else block.tweak.outcome


def validate_block_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table, its columns coerced to their types.

    Raises:
        BlockTableError: A column is missing, unknown or of another type, a layer of a block
            repeats, a width is none of 2, 3, 4 and 8, or an error is negative or not finite.
    """
    try:
        return BlockTable.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases
        first = cases.iloc[0]
        raise BlockTableError(
            f"block table: column {first['column']} must satisfy {first['check']}; found "
            f"{str(first['failure_case'])[:80]} ({len(cases)} failures): make the table again"
        ) from error


def write_block_table(path: Path, frame: pd.DataFrame) -> None:
    """Write the table as parquet once it is valid; equal tables give equal bytes.

    Raises:
        BlockTableError: The table is not valid; nothing is written.
    """
    buffer = io.BytesIO()
    validate_block_table(frame).to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())


def read_block_table(path: Path) -> pd.DataFrame:
    """Return a table as it was written.

    Raises:
        BlockTableError: The file is missing, torn, or its table is not valid.
    """
    try:
        frame = pd.read_parquet(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise BlockTableError(
            f"block table {path} must be a parquet file; {error}: make the table again"
        ) from error
    return validate_block_table(frame)
