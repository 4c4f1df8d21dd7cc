"""What people look at: the block table, the calibration report, the summary and the drift plot.

The same content goes to files under the export, to the registry and, as artifacts, to the page of
the flow run. Nothing in it depends on when or where the run took place: equal runs write equal
bytes. Several recipes can lead to one export, so each of them has a folder of its own there, with
the recipe in it.
"""

import base64
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import yaml

from flows.recipes.quantize import Recipe
from flows.reports.publish import PAGE, artifact_key, publish_page, publish_table
from flows.reports.words import (
    CHANNELS_PLOT,
    DRIFT_TABLE,
    PLOT,
    blocks_markdown,
    calibration_markdown,
    percent,
    summary_markdown,
)
from normtweak_core.quantization.report import BlockReport
from normtweak_core.tweak.report import FinalTuneReport
from tasks.engine.artifacts import write_atomically
from tasks.engine.live_page import show_table
from tasks.results import FloatType

if TYPE_CHECKING:
    import pandas as pd

    from normtweak_core.evaluate.channel_drift import ChannelDrift
    from tasks.tables.drift import Stage

FOLDER = "reports"
TABLE = "blocks.parquet"
LONGEST_TAG = 4000  # characters; MLflow takes 5000
TABLE_DESCRIPTION = (
    "Drift is |x_q - x_f| / |x_f| behind a block: rounded to nearest (RTN), as quantized, and "
    "after the norm tweak. Errors are relative, means over the block's linears."
)


@dataclass(frozen=True)
class Reports:
    """Everything the reports of one run are made of."""

    recipe: Recipe
    blocks: list[BlockReport]
    baseline: list[BlockReport]  # round to nearest, for the drift plot
    drift: "dict[Stage, ChannelDrift]"  # of every channel, at each stage of the run
    final_tune: FinalTuneReport | None
    quality: dict[str, Any]
    metrics: dict[str, float]
    origin: dict[str, str]  # hashes and names of what the export was made from, and its own
    export: Path  # its folder
    float_type: FloatType
    float_bytes: int  # size of the float model's files

    @property
    def folder(self) -> Path:
        """Where the reports go: no other recipe that leads to this export writes there."""
        return self.export / FOLDER / recipe_sha256(self.recipe)[:12]

    def problems(self) -> list[str]:
        """Return what a person must act on, one sentence each."""
        return [problem for block in self.blocks for problem in block.problems()]

    def notes(self) -> list[str]:
        """Return what was undone because it did not help, one sentence each."""
        found = [note for block in self.blocks for note in block.notes()]
        if self.final_tune and self.final_tune.outcome == "rolled back":
            found.append(rolled_back(self.final_tune))
        return found

    def series(self) -> dict[str, dict[int, float]]:
        """Return drifts and errors by block."""
        of_layers = {
            block.block: [row.output_error for row in block.layers if row.output_error is not None]
            for block in self.blocks
        }
        found = {
            "drift/rtn": {block.block: block.drift_quantized for block in self.baseline},
            "drift/quantized": {block.block: block.drift_quantized for block in self.blocks},
            "drift/tweaked": {block.block: block.drift_tweaked for block in self.blocks},
            "error/weight": {
                block.block: mean(row.weight_error for row in block.layers)
                for block in self.blocks
                if block.layers
            },
            "error/output": {index: mean(errors) for index, errors in of_layers.items() if errors},
        }
        return {name: points for name, points in found.items() if points}

    def lineage(self) -> dict[str, str]:
        """Return where the result comes from and what became of it; the same for equal runs."""
        config = self.recipe.quantization
        return self.origin | {
            **self.float_type.tags(),
            "recipe_sha256": recipe_sha256(self.recipe),
            "bits": str(config.bits),
            "group_size": str(config.group_size or "channel"),
            "method": config.method,
            **remarks(self.problems(), self.notes()),
        }


def remarks(problems: list[str], notes: list[str]) -> dict[str, str]:
    """Return the tags that say what became of a run."""
    return {
        "problems": "; ".join(problems)[:LONGEST_TAG] or "none",
        "notes": "; ".join(notes)[:LONGEST_TAG] or "none",
    }


def rolled_back(tune: FinalTuneReport) -> str:
    """Return the note on a final tune that was undone."""
    return (
        "final tune rolled back (held-out divergence "
        f"{tune.held_out_before:.4g} -> {tune.held_out_after:.4g})"
    )


def publish_reports(reports: Reports) -> list[Path]:
    """Write the reports under the export folder, publish them in Prefect, return the files.

    Raises:
        TableError: A number of a block or channel is not finite or cannot be, or a layer occurs
            twice.
    """
    files = write_reports(reports)
    publish_artifacts(reports)
    return files


def write_reports(reports: Reports) -> list[Path]:
    """Write the reports under the export folder and return the files.

    Raises:
        TableError: As `publish_reports`.
    """
    from flows.reports.figures.drift_channels import channel_figure
    from flows.reports.figures.drift_lines import drift_plot
    from flows.reports.quantize_page import quantize_page
    from tasks.tables.blocks import BLOCKS, block_frame
    from tasks.tables.drift import DRIFT, drift_frame

    folder = reports.folder
    folder.mkdir(parents=True, exist_ok=True)
    BLOCKS.write(folder / TABLE, block_frame(reports.blocks, reports.baseline))
    DRIFT.write(folder / DRIFT_TABLE, drift_frame(reports.drift))
    texts = {
        "blocks.md": blocks_markdown(reports.recipe, BLOCKS.read(folder / TABLE)),
        "calibration.md": calibration_markdown(reports.recipe, reports.quality),
        "summary.md": _summary(reports, PLOT),
        "recipe.yaml": yaml.safe_dump(reports.recipe.model_dump(mode="json"), sort_keys=False),
        "lineage.json": json.dumps(reports.lineage(), indent=1, sort_keys=True) + "\n",
    }
    title = f"{reports.recipe.name}: drift of the quantized stream"
    channels_title = f"{reports.recipe.name}: mean and variance of each channel"
    pictures = {
        PLOT: drift_plot(_drift_series(reports), title),
        CHANNELS_PLOT: channel_figure(reports.drift, channels_title),
    }
    texts[PAGE] = quantize_page(reports, _drift_series(reports), pictures[CHANNELS_PLOT])
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    for name, picture in pictures.items():
        write_atomically(folder / name, picture)
    return [folder / name for name in (TABLE, DRIFT_TABLE, *texts, *pictures)]


def publish_artifacts(reports: Reports) -> None:
    """Show the written reports on the page of the current flow run.

    Raises:
        TableError: The written table is not valid any more.
    """
    from prefect.artifacts import create_markdown_artifact

    from tasks.tables.blocks import BLOCKS

    folder = reports.folder
    name = reports.recipe.name
    publish_table(name, "blocks", block_rows(BLOCKS.read(folder / TABLE)), TABLE_DESCRIPTION)
    create_markdown_artifact(
        key=artifact_key(name, "calibration"),
        markdown=(folder / "calibration.md").read_text(encoding="utf-8"),
        description=f"Calibration set: {reports.quality['verdict']}",
    )
    # Both of Prefect's pages draw an image inside the text; its image artifact would print the
    # whole address, 40 kB of it, below the picture.
    picture = base64.b64encode((folder / PLOT).read_bytes()).decode()
    publish_page(name, folder / PAGE)
    ratio = reports.metrics["perplexity/ratio"]
    create_markdown_artifact(
        key=artifact_key(name, "summary"),
        markdown=_summary(reports, f"data:image/png;base64,{picture}"),
        description=f"Perplexity {percent(ratio - 1, signed=True)} against the float model",
    )


def show_blocks(blocks: list[BlockReport]) -> None:
    """Show the finished blocks on the page of the run; the baseline is added at its end."""
    from tasks.tables.blocks import block_frame

    rows = block_rows(block_frame(blocks, blocks))
    for row in rows:
        del row["drift RTN"]
    show_table("blocks", rows, TABLE_DESCRIPTION)


def recipe_sha256(recipe: Recipe) -> str:
    """Return the hash of every value of a recipe, defaults included."""
    text = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def block_rows(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Return one row a block, numbers rounded for reading, from the table of layers."""
    return [
        {
            "block": int(block),
            "drift RTN": _rounded(layers["drift_rtn"].iloc[0]),
            "drift": _rounded(layers["drift_quantized"].iloc[0]),
            "tweaked": _rounded(layers["drift_tweaked"].iloc[0]),
            "norm tweak": layers["tweak"].iloc[0],
            "output error": _rounded(layers["output_error"].mean()),
            "weight error": _rounded(layers["weight_error"].mean()),
            "bits": int(layers["bits"].iloc[0]),
            "damping raised": int(layers["damping_raised"].sum()),
        }
        for block, layers in table.groupby("block")
    ]


def _rounded(value: float) -> float | str:
    return "" if math.isnan(value) else float(f"{value:.4g}")


def _drift_series(reports: Reports) -> dict[str, list[float]]:
    method = {"gptq": "after GPTQ", "rtn": "after rounding"}[reports.recipe.quantization.method]
    series = {
        "round to nearest alone": [block.drift_quantized for block in reports.baseline],
        method: [block.drift_quantized for block in reports.blocks],
    }
    if reports.recipe.norm_tweak.enabled:
        series["after the norm tweak"] = [block.drift_tweaked for block in reports.blocks]
    if "final tune" in reports.drift:
        series["after the final tune"] = reports.drift["final tune"].relative_norm().tolist()
    return series


def _summary(reports: Reports, plot: str) -> str:
    return summary_markdown(
        reports.recipe,
        reports.metrics,
        reports.blocks,
        reports.final_tune,
        reports.quality,
        reports.problems(),
        reports.notes(),
        reports.float_type,
        reports.export.name,
        plot,
    )
