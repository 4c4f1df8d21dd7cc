"""The cells of an ablation as a table, checked on write and on read."""

import math
from typing import get_args

import pandas as pd
import pandera.pandas as pa
from pandera.typing.pandas import Series

from normtweak_core.ablation.config import STUDIES
from normtweak_core.tweak.report import Outcome
from tasks.tables.frame import Schema, Table

BASE = "base"
TUNES = (*get_args(Outcome), "off")

_POSITIVE = {"gt": 0, "lt": math.inf}
_SHARE = {"ge": 0, "le": 1}


class AblationTable(Schema):
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

    class Config(Schema.Config):
        """What no two rows share."""

        unique = ("study", "value", "seed")

    @pa.dataframe_check(name="as many tweaks kept as blocks at most")
    def _tweaks_are_of_blocks(cls, frame: pd.DataFrame) -> Series[bool]:  # noqa: N805
        return frame["tweaks_kept"] <= frame["blocks"]


ABLATION = Table(AblationTable.to_schema(), "table of cells")
