"""One row a block, rounded for reading: on the page of the run and in its summary."""

import math
from typing import TYPE_CHECKING, Any

from flows.reports.publish import Rows
from normtweak_core.quantization.report import BlockReport
from tasks.engine.live_page import show_table
from tasks.tables.blocks import OFF, block_frame

if TYPE_CHECKING:
    import pandas as pd

BLOCKS_DESCRIPTION = (
    "Drift is |x_q - x_f| / |x_f| behind a block: rounded to nearest (RTN), as quantized, and "
    "after the norm tweak. Errors are relative, means over the block's linears."
)


def show_blocks(blocks: list[BlockReport]) -> None:
    """Show the finished blocks on the page of the run; the baseline is added at its end."""
    rows = block_rows(block_frame(blocks, blocks))
    for row in rows:
        del row["drift RTN"]
    show_table("blocks", rows, BLOCKS_DESCRIPTION)


def block_rows(table: "pd.DataFrame") -> Rows:
    """Return one row a block, numbers rounded for reading, from the table of layers."""
    return [
        {
            "block": int(block),
            "drift RTN": _rounded(layers["drift_rtn"].iloc[0]),
            "drift": _rounded(layers["drift_quantized"].iloc[0]),
            "tweaked": _rounded(layers["drift_tweaked"].iloc[0]),
            "norm tweak": layers["tweak"].iloc[0],
            **_trained_cells(layers),
            "output error": _rounded(layers["output_error"].mean()),
            "weight error": _rounded(layers["weight_error"].mean()),
            "bits": _widths(layers["bits"]),
            "damping raised": int(layers["damping_raised"].sum()),
        }
        for block, layers in table.groupby("block")
    ]


def _widths(bits: "pd.Series[int]") -> int | str:
    """Return the width of a block's linears, or all that they have."""
    found = sorted(set(map(int, bits)))
    return found[0] if len(found) == 1 else ", ".join(map(str, found))


def _trained_cells(layers: "pd.DataFrame") -> dict[str, Any]:
    """Return what a block's training brought; nothing where there was none."""
    outcome = layers["training"].iloc[0]
    trained = {"trained": _rounded(layers["drift_trained"].iloc[0]), "training": outcome}
    return {} if outcome == OFF else trained


def _rounded(value: float) -> float | str:
    return "" if math.isnan(value) else float(f"{value:.4g}")
