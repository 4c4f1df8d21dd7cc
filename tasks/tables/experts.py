"""The experts of a run as a table: one row an expert, checked on write and on read."""

import pandas as pd
import pandera.pandas as pa
from pandera.typing.pandas import Series

from normtweak_core.quantization.report import BlockReport
from tasks.tables.frame import Schema, Table

SOURCES = ("routed tokens", "all tokens", "none")


class ExpertTable(Schema):
    """One row an expert of a block."""

    block: Series[int] = pa.Field(ge=0, description="Index of the decoder layer.")
    expert: Series[str] = pa.Field(str_length={"min_value": 1}, description="Name in the block.")
    tokens: Series[int] = pa.Field(ge=0, description="Calibration tokens that are routed to it.")
    statistics: Series[str] = pa.Field(isin=SOURCES, description="What its Hessians come from.")

    class Config(Schema.Config):
        """What no two rows share."""

        unique = ("block", "expert")


EXPERTS = Table(ExpertTable.to_schema(), "expert table")


def expert_frame(blocks: list[BlockReport]) -> pd.DataFrame:
    """Return the table of a run."""
    return EXPERTS.of(
        [{"block": block.block, **one.model_dump()} for block in blocks for one in block.experts]
    )
