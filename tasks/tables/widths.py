"""The widths of a run as a table: one row a width of a group of linears, checked."""

import math

import pandas as pd
import pandera.pandas as pa
from pandera.typing.pandas import Series

from normtweak_core.widths.report import Allotment
from tasks.tables.blocks import BITS
from tasks.tables.frame import Schema, Table


class WidthTable(Schema):
    """One row a width that a group of linears could have."""

    block: Series[int] = pa.Field(ge=0, description="Index of the decoder layer.")
    layers: Series[str] = pa.Field(
        str_length={"min_value": 1}, description="Linears with one width, by their names in it."
    )
    bits: Series[int] = pa.Field(isin=BITS, description="Width of one code.")
    divergence: Series[float] = pa.Field(
        gt=-math.inf,
        lt=math.inf,
        description="Nats per token on held-out windows, all others at the narrowest.",
    )
    stored_bits: Series[int] = pa.Field(
        gt=0, description="Bits that it takes on disk, with scales and zero points."
    )
    allotted: Series[bool] = pa.Field(description="Whether the group got it.")

    class Config(Schema.Config):
        """What no two rows share."""

        unique = ("block", "layers", "bits")


WIDTHS = Table(WidthTable.to_schema(), "width table")


def widths_frame(allotment: Allotment) -> pd.DataFrame:
    """Return the table of a run."""
    return WIDTHS.of(
        [
            {
                "block": group.block,
                "layers": ", ".join(group.linears),
                "bits": width,
                "divergence": divergence,
                "stored_bits": group.stored_bits[width],
                "allotted": width == group.width,
            }
            for group in allotment.groups
            for width, divergence in group.divergence.items()
        ]
    )
