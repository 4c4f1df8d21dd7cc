"""What people look at after a fine-tuning: what each part brought, curves, the training text."""

from dataclasses import dataclass
from pathlib import Path

from flows.reports.html import Cell, Column, Section, Table, drawing, number
from flows.reports.training import (
    PLOT,
    TrainingReports,
    publish_training_artifacts,
    write_training_reports,
)
from flows.reports.training_page import Told
from flows.reports.words import markdown_table, precision, result_rows
from normtweak_core.finetune.source import ExportSource
from normtweak_core.training.rates import Rates
from tasks.engine.live_page import show_table
from tasks.models.export_folder import REGISTERED
from tasks.stages.training.finetune_blocks import TrainedBlockResult

DISTANCE = "Distance: |output - float output| / |float output| of tokens of held-out windows."
COLUMNS = ("", "float", "before", "after", "difference to float")


@dataclass(frozen=True)
class FinetuneReports(TrainingReports):
    """Everything the reports of one fine-tuning are made of; its losses are divergences."""

    source: ExportSource
    blocks: list[TrainedBlockResult]
    start: dict[str, float]  # metrics of the export that was started from

    @property
    def distance_kept(self) -> float | None:
        """Which share of the export's perplexity above the float model's is left.

        None where the export was not above it, so that there was no distance.
        """
        below = self.metrics["perplexity/float"]
        distance = self.start["perplexity/quantized"] - below
        kept = self.metrics["perplexity/quantized"] - below
        return kept / distance if distance > 0 else None

    def problems(self) -> list[str]:
        """Return what a person must act on, one sentence each."""
        found = []
        if self.best == 0:  # unlike that of a single block: the run was in vain
            first, last = self.held_out[0], self.held_out[max(self.held_out)]
            found.append(
                f"end to end: training rolled back (held-out divergence {first:.4g} -> {last:.4g})"
            )
        before, after = self.start["kl/mean"], self.metrics["kl/mean"]
        if after >= before:
            found.append(
                f"the fine-tuned model diverges more than the export it started from ({before:.4g} "
                f"-> {after:.4g} nats per token): lower finetune.lr, or train on more text"
            )
        return found

    def notes(self) -> list[str]:
        """Return what was undone because it did not help, one sentence each."""
        return [
            f"block {block.block}: training rolled back (held-out distance "
            f"{block.distance_before:.4g} -> {block.distance_after:.4g})"
            for block in self.blocks
            if not block.accepted
        ]

    def series(self) -> dict[str, dict[int, float]]:
        """Return the losses by optimizer step, and the distances by block."""
        before = {block.block: block.distance_before for block in self.blocks}
        after = {block.block: block.distance_after for block in self.blocks}
        by_block = {"distance/before": before, "distance/after": after} if self.blocks else {}
        return super().series() | by_block

    def lineage(self) -> dict[str, str]:
        """Return where the result comes from and what became of it; the same for equal runs."""
        return super().lineage() | {
            "bits": str(self.source.bits),
            "group_size": str(self.source.group_size or "channel"),
            "method": "finetune" if self.recipe.finetune.lora is None else "finetune-lora",
            "parent_export_sha256": self.source.payload_sha256,
        }


def publish_finetune_reports(reports: FinetuneReports) -> list[Path]:
    """Write the reports under the export folder, publish them in Prefect, return the files."""
    files = write_finetune_reports(reports)
    publish_training_artifacts(reports, lambda plot: _summary(reports, plot))
    return files


def show_trained_blocks(blocks: list[TrainedBlockResult]) -> None:
    """Show the blocks that are trained by now on the page of the flow run."""
    rows = [
        {
            "block": block.block,
            "distance before": float(f"{block.distance_before:.4g}"),
            "distance after": float(f"{block.distance_after:.4g}"),
            "outcome": "kept" if block.accepted else "rolled back",
        }
        for block in blocks
    ]
    show_table("blocks", rows, DISTANCE)


def write_finetune_reports(reports: FinetuneReports) -> list[Path]:
    """Write the reports under the export folder and return the files."""
    rates = Rates(reports.recipe.finetune.steps, reports.recipe.finetune.scale_lr)
    rows = [
        {"step": step + 1, "loss": loss, "learning_rate": rates.lr_at(step)}
        for step, loss in enumerate(reports.losses)
    ]
    return write_training_reports(
        reports,
        _summary(reports, PLOT),
        _told(reports),
        rows,
        {
            "title": f"{reports.recipe.name}: fine-tuning end to end",
            "measured_as": "divergence on held-out windows",
        },
    )


def _summary(reports: FinetuneReports, plot: str) -> str:
    config, source = reports.recipe.finetune, reports.source
    blocks = [
        (
            block.block,
            f"{block.distance_before:.4f}",
            f"{block.distance_after:.4f}",
            "kept" if block.accepted else "rolled back",
        )
        for block in reports.blocks
    ]
    return "\n".join(
        [
            f"# {reports.recipe.name}",
            "",
            f"`{_start(reports)}` ({_grid(source)}), trained on towards "
            f"`{source.float_name}`: {_what(reports)}. Export: `{reports.export.name}`.",
            "",
            *markdown_table(COLUMNS, _results(reports), "lrrrr"),
            "",
            f"On {reports.metrics['tokens']:,.0f} predicted tokens{precision(reports.metrics)}."
            + _left(reports),
            "",
            f"Float type: {reports.float_type.in_words()}.",
            "",
            "## Block by block",
            "",
            f"{config.block_steps} steps a block. {DISTANCE}",
            "",
            *markdown_table(("block", "before", "after", ""), blocks, "rrrl"),
            "",
            "## End to end",
            "",
            f"{_training(reports)}",
            "",
            *markdown_table(
                ("step", "divergence on held-out windows"),
                [(step, f"{loss:.4f}") for step, loss in reports.held_out.items()],
                "rr",
            ),
            "",
            f"![Loss and learning rate over the steps]({plot})",
            "",
        ]
    )


def _told(reports: FinetuneReports) -> Told:
    source, metrics = reports.source, reports.metrics
    return Told(
        kind="Fine-tuning",
        lead=f"{_start(reports)} ({_grid(source)}), trained on towards {source.float_name}: "
        f"{_what(reports)}. Export: {reports.export.name}.",
        columns=COLUMNS,
        results=_results(reports),
        models=[
            ("float", reports.float_bytes, metrics, "perplexity/float"),
            ("before", reports.start["size_bytes"], reports.start, "perplexity/quantized"),
            ("after", metrics["size_bytes"], metrics, "perplexity/quantized"),
        ],
        own=[_blocks_section(reports)],
        training=_training(reports),
        held_out="divergence on held-out windows",
        after_result=_left(reports),
    )


def _blocks_section(reports: FinetuneReports) -> Section:
    from flows.reports.figures.drift_lines import drift_figure

    columns = (Column("block"), Column("before"), Column("after"), Column("outcome", numbers=False))
    blocks = reports.blocks
    rows = [
        (
            number(block.block, "d"),
            number(block.distance_before),
            number(block.distance_after),
            Cell("kept" if block.accepted else "rolled back"),
        )
        for block in blocks
    ]
    caption = f"{reports.recipe.finetune.block_steps} steps a block. {DISTANCE}"
    table = Table(columns, rows, "Distance by block")
    if not blocks:  # block_steps: 0
        return Section("Block by block", [table])
    series = {
        "before": [block.distance_before for block in blocks],
        "after": [block.distance_after for block in blocks],
    }
    picture = drawing(drift_figure(series, "", "relative distance"), "blocks", caption)
    return Section("Block by block", [picture, table])


def _start(reports: FinetuneReports) -> str:
    """Return what people call the export that was trained on."""
    asked = reports.recipe.model.source
    return asked if asked.startswith(REGISTERED) else reports.source.folder.name


def _grid(source: ExportSource) -> str:
    group = f"groups of {source.group_size}" if source.group_size else "one group a row"
    return f"{source.bits} bits, {group}"


def _what(reports: FinetuneReports) -> str:
    lora, what = reports.recipe.finetune.lora, "whole weights"
    if lora is not None:
        what = f"an update of rank {lora.rank}, merged before rounding"
    return f"{what}, scales and norms"


def _training(reports: FinetuneReports) -> str:
    config = reports.recipe.finetune
    return (
        f"{config.steps} steps of {config.batch} windows, {reports.tokens:,} tokens, on the "
        f"float model's logits, in {config.dtype}. {reports.kept}"
    )


def _results(reports: FinetuneReports) -> list[tuple[str, ...]]:
    start = dict(
        zip(
            ("perplexity", "KL divergence (nats per token)", "same first choice"),
            (
                f"{reports.start['perplexity/quantized']:.3f}",
                f"{reports.start['kl/mean']:.4f}",
                f"{100 * reports.start['top1_agreement']:.1f} %",
            ),
            strict=True,
        )
    )
    return [
        (what, whole, start.get(what, ""), trained, difference)
        for what, whole, trained, difference in result_rows(reports.metrics)
    ]


def _left(reports: FinetuneReports) -> str:
    kept = reports.distance_kept
    if kept is None:
        return ""
    return f" Of the distance to the float perplexity, {100 * kept:.0f} % are left."
