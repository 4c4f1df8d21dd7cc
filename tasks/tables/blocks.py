"""The blocks of a run as a table: one row a quantized linear, checked on write and on read."""

import math
from typing import get_args

import pandas as pd
import pandera.pandas as pa
from pandera.typing.pandas import Series

from normtweak_core.quantization.report import BlockReport
from normtweak_core.tweak.report import Outcome
from tasks.tables.frame import Schema, Table

OFF = "off"
OUTCOMES = (OFF, *get_args(Outcome))
BITS = (2, 3, 4, 8)

_FINITE = {"ge": 0, "lt": math.inf}


class BlockTable(Schema):
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
    drift_trained: Series[float] = pa.Field(
        **_FINITE, nullable=True, description="The same after the block's training; none without."
    )
    training: Series[str] = pa.Field(isin=OUTCOMES, description="The block's training.")

    class Config(Schema.Config):
        """What no two rows share."""

        unique = ("block", "layer")


BLOCKS = Table(BlockTable.to_schema(), "block table")


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
            "drift_trained": math.nan if block.drift_trained is None else block.drift_trained,
            "training": training_outcome(block),
        }
        for block, rounded in zip(blocks, baseline, strict=True)
        for layer in block.layers
    ]
    return BLOCKS.of(rows)


def tweak_outcome(block: BlockReport) -> str:
    """Return what became of a block's norm tweak."""
    return OFF if block.tweak is None else block.tweak.outcome


def training_outcome(block: BlockReport) -> str:
    """Return what became of a block's training."""
    return OFF if block.training is None else block.training.outcome
