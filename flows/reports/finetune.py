"""What is told of a fine-tuning: what each block brought, and what every training tells."""

from dataclasses import dataclass

from flows.reports.blocks.outcomes import activation_tags
from flows.reports.document import Section, Table, number
from flows.reports.figures.canvas import drawing
from flows.reports.figures.drift_lines import drift_figure
from flows.reports.publish import Report
from flows.reports.training import TrainingReports, training_report
from normtweak_core.evaluate.metric import read_metrics
from normtweak_core.finetune.source import ExportSource
from normtweak_core.training.rates import Rates
from tasks.engine.live_page import show_table
from tasks.models.export_folder import REGISTERED
from tasks.stages.training.finetune_blocks import TrainedBlockResult

DISTANCE = "Distance: |output - float output| / |float output| of tokens of held-out windows."


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

    def more_metrics(self) -> dict[str, float]:
        """Return what is registered beside the metrics of the export: where it started."""
        found = {
            "start/perplexity/quantized": self.start["perplexity/quantized"],
            "start/kl/mean": self.start["kl/mean"],
        }
        return (
            found if self.distance_kept is None else found | {"distance_kept": self.distance_kept}
        )

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
        own = {
            "bits": self.source.quantization.bits_in_tags,
            "group_size": str(self.source.group_size or "channel"),
            "method": "finetune" if self.recipe.finetune.lora is None else "finetune-lora",
            "parent_export_sha256": self.source.payload_sha256,
        }
        return super().lineage() | own | activation_tags(self.source.quantization)

    def report(self) -> Report:
        """Return the fine-tuning as it is written and shown."""
        config, kept = self.recipe.finetune, self.distance_kept
        rates = Rates(config.steps, config.scale_lr)
        float_model, after = self.models("after")
        perplexity = read_metrics(self.start)["perplexity/quantized"]
        return training_report(
            self,
            [
                {"step": step + 1, "loss": loss, "learning_rate": rates.lr_at(step)}
                for step, loss in enumerate(self.losses)
            ],
            section=_blocks_section(self),
            training=f"{config.steps} steps of {config.batch} windows, {self.tokens:,} tokens, on "
            f"the float model's logits, in {config.dtype}.",
            measured_as="divergence on held-out windows",
            kind="Fine-tuning",
            lead=_lead(self),
            own="after",
            models=[float_model, ("before", self.start["size_bytes"], perplexity), after],
            before=self.start,
            after_result=""
            if kept is None
            else f" Of the distance to the float perplexity, {100 * kept:.0f} % are left.",
        )


def show_trained_blocks(blocks: list[TrainedBlockResult]) -> None:
    """Show the blocks that are trained by now on the page of the flow run."""
    rows = [
        {
            "block": block.block,
            "distance before": float(f"{block.distance_before:.4g}"),
            "distance after": float(f"{block.distance_after:.4g}"),
            "outcome": _outcome(block),
        }
        for block in blocks
    ]
    show_table("blocks", rows, DISTANCE)


def _outcome(block: TrainedBlockResult) -> str:
    return "kept" if block.accepted else "rolled back"


def _lead(reports: FinetuneReports) -> str:
    """Return what was trained on, towards what, and which of its values."""
    source, lora = reports.source, reports.recipe.finetune.lora
    asked = reports.recipe.model.source
    start = asked if asked.startswith(REGISTERED) else source.folder.name
    group = f"groups of {source.group_size}" if source.group_size else "one group a row"
    bits = source.activation_bits
    reads = f", reading {bits}-bit activations" if bits else ""
    what = "whole weights"
    if lora is not None:
        what = f"an update of rank {lora.rank}, merged before rounding"
    return (
        f"{start} ({source.quantization.in_words}, {group}{reads}), trained on towards "
        f"{source.float_name}: {what}, scales and norms."
    )


def _blocks_section(reports: FinetuneReports) -> Section:
    blocks = reports.blocks
    rows = [
        (
            number(block.block, "d"),
            number(block.distance_before),
            number(block.distance_after),
            _outcome(block),
        )
        for block in blocks
    ]
    caption = f"{reports.recipe.finetune.block_steps} steps a block. {DISTANCE}"
    table = Table(("block", "before", "after", "outcome"), rows, "Distance by block")
    if not blocks:  # block_steps: 0
        return Section("Block by block", [table])
    series = {
        "before": [block.distance_before for block in blocks],
        "after": [block.distance_after for block in blocks],
    }
    picture = drawing(drift_figure(series, "relative distance"), "blocks", caption)
    return Section("Block by block", [picture, table])
