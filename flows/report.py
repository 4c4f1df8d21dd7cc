"""What people look at: the block table, the calibration report, the summary and the drift plot."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.params import Recipe
from normtweak_core.quantize.report import BlockReport
from normtweak_core.tweak.report import FinalTuneReport


@dataclass(frozen=True)
class Reports:
    """Everything the reports of one run are made of."""

    recipe: Recipe
    blocks: list[BlockReport]
    baseline: list[BlockReport]  # round to nearest, for the drift plot
    final_tune: FinalTuneReport | None
    quality: dict[str, Any]
    metrics: dict[str, float]
    folder: Path  # the export; reports go into a folder of it

    def problems(self) -> list[str]:
        """Return every problem of the run, one sentence each."""
        found = [problem for block in self.blocks for problem in block.problems()]
        if self.final_tune and not self.final_tune.accepted:
            found.append("final tune rolled back")
        return found


def publish_reports(reports: Reports) -> list[Path]:
    """Write the reports under the export folder, publish them in Prefect, return the files."""
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    from normtweak_core.evaluate.plot import drift_plot

    folder = reports.folder / "reports"
    folder.mkdir(exist_ok=True)
    plot = folder / "drift.png"
    drift_plot(
        plot,
        {
            "round to nearest": [b.drift_quantized for b in reports.baseline],
            "quantized": [b.drift_quantized for b in reports.blocks],
            "after the norm tweak": [b.drift_tweaked for b in reports.blocks],
        },
        f"{reports.recipe.name}: drift of the quantized stream",
    )
    create_table_artifact(
        key="blocks",
        table=[
            {
                "block": b.block,
                "drift quantized": round(b.drift_quantized, 5),
                "drift tweaked": round(b.drift_tweaked, 5),
                "tweak": "" if b.tweak is None else "kept" if b.tweak.accepted else "rolled back",
            }
            for b in reports.blocks
        ],
    )
    summary = folder / "summary.md"
    rows = "\n".join(f"| {k} | {v:.6g} |" for k, v in sorted(reports.metrics.items()))
    summary.write_text(f"# {reports.recipe.name}\n\n| metric | value |\n|---|---|\n{rows}\n")
    create_markdown_artifact(key="summary", markdown=summary.read_text())
    return [plot, summary]
