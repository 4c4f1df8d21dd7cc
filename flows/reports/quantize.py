"""What is told of a quantization: drift and errors block by block, and what every run tells."""

from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

from flows.reports.blocks.outcomes import (
    activation_tags,
    codes_in_words,
    effort_in_words,
    experts_in_words,
    final_tune_in_words,
    scheme,
    training_in_words,
    tweaks_in_words,
)
from flows.reports.blocks.rows import BLOCKS_DESCRIPTION, block_rows
from flows.reports.blocks.widths import WIDTHS_BY_BLOCK, WIDTHS_TABLE, widths_section
from flows.reports.document import Cell, Drawing, Section, Table, number
from flows.reports.figures.canvas import drawing
from flows.reports.figures.drift_channels import channel_figure
from flows.reports.figures.drift_lines import drift_figure
from flows.reports.publish import Report
from flows.reports.run import VERDICTS, RunReports, Told, run_report
from normtweak_core.quantization.report import BlockReport, ExpertReport, LayerReport
from normtweak_core.tweak.report import FinalTuneReport
from normtweak_core.vision.kinds import calibrated_in_words
from normtweak_core.widths.report import Allotment
from tasks.tables.blocks import BLOCKS, block_frame, training_outcome, tweak_outcome
from tasks.tables.drift import DRIFT, drift_frame
from tasks.tables.experts import EXPERTS, expert_frame
from tasks.tables.widths import WIDTHS, widths_frame

if TYPE_CHECKING:
    from normtweak_core.evaluate.channel_drift import ChannelDrift
    from tasks.tables.drift import Stage

TABLE, DRIFT_TABLE, EXPERT_TABLE = "blocks.parquet", "drift.parquet", "experts.parquet"
PLOT, CHANNELS_PLOT = "drift.png", "drift-channels.png"
BY_BLOCK, BY_CHANNEL = "Drift, block by block", "Drift, channel by channel"
ERRORS = "Errors, block by block"
EXPERTS_BY_BLOCK = "Experts, block by block"
OF_LINEARS = ("damping", "ridge", "dead columns")
OF_ERRORS = (
    "Relative errors of the linears of each block. Weight error is |W - Q| / |W|; output error is "
    "the same of a layer's output over the calibration tokens, where W carries the correction for "
    "its input's error."
)
OF_DRIFT = (
    "|x_q - x_f| / |x_f| behind each block: how far the quantized stream is from the float stream "
    "on the calibration set."
)
OF_EXPERTS = (
    "Calibration tokens that the router of the quantized stream gives to each expert, whose "
    "Hessians come from them. An expert with fewer than quantization.experts.min_tokens times the "
    "width of the hidden state is named, with what was done instead. Routed alike: the share of "
    f"these choices that the float stream makes too. {EXPERT_TABLE} holds every expert."
)
OF_CHANNELS = (
    "Mean and variance of each channel on the calibration set against the float model's, in its "
    "deviations. Above, block by block: the median over channels and, shaded, the middle half. "
    "Below: one dot a channel behind the last block. drift.parquet holds every number."
)


@dataclass(frozen=True)
class Reports(RunReports):
    """Everything the reports of one quantization are made of."""

    blocks: list[BlockReport]
    baseline: list[BlockReport]  # round to nearest, for the drift plot
    drift: "dict[Stage, ChannelDrift]"  # of every channel, at each stage of the run
    final_tune: FinalTuneReport | None
    allotment: Allotment | None = None  # where the widths were left to a budget

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
            "drift/trained": {
                block.block: block.drift_trained
                for block in self.blocks
                if block.drift_trained is not None
            },
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
        routed = {"experts": experts_in_words(self.blocks)} if self.experts else {}
        return (
            super().lineage()
            | routed
            | ({"widths": self.allotment.in_words()} if self.allotment else {})
            | {
                "effort": self.recipe.effort,
                "bits": config.bits_in_tags,
                "group_size": str(config.group_size or "channel"),
                "method": config.method if self.recipe.base is None else "base",
            }
            | activation_tags(config)
        )

    @property
    def experts(self) -> list[ExpertReport]:
        """The experts of all blocks; none of a dense model, or where no statistics were needed."""
        return [one for block in self.blocks for one in block.experts]

    def more_metrics(self) -> dict[str, float]:
        """Return the tokens of the expert with fewest, and how many experts have few."""
        if not self.experts:
            return {}
        return {
            "experts/fewest_tokens": float(min(one.tokens for one in self.experts)),
            "experts/with_few_tokens": float(sum(one.few for one in self.experts)),
        }

    def report(self) -> Report:
        """Return the run as it is written and shown.

        Writing raises:
            TableError: A number of a block or channel is not finite or cannot be, or a layer occurs
                twice.
        """
        blocks = block_frame(self.blocks, self.baseline)
        widths = [WIDTHS_BY_BLOCK] if self.allotment else []
        experts = [EXPERTS_BY_BLOCK] if self.experts else []
        told = Told(
            kind="Quantization",
            lead=f"{self.recipe.model.source} {scheme(self.recipe)}.",
            own="quantized",
            models=self.models("quantized"),
            stages=[
                ("calibration", VERDICTS[self.quality["verdict"]]),
                *images_row(self.quality),
                ("float type", self.float_type.in_words()),
                *([("widths", self.allotment.in_words())] if self.allotment else []),
                *([] if self.recipe.base is None else [("codes", codes_in_words(self.origin))]),
                ("effort", effort_in_words(self.recipe)),
                ("norm tweak", tweaks_in_words(self.blocks)),
                ("block training", training_in_words(self.blocks)),
                ("final tune", final_tune_in_words(self.final_tune)),
                *([("experts", experts_in_words(self.blocks))] if self.experts else []),
            ],
            sections=[
                *([widths_section(self.allotment)] if self.allotment else []),
                _drift_section(self),
                _channels_section(self),
                _errors_section(self.blocks),
                *([_experts_section(self.blocks)] if self.experts else []),
            ],
            summary=[*widths, BY_BLOCK, *experts],
            texts={"blocks.md": [*widths, BY_BLOCK, ERRORS, *experts]},
            text="Calibration set",
            text_name="calibration",
        )
        data = {
            TABLE: (BLOCKS, blocks),
            DRIFT_TABLE: (DRIFT, drift_frame(self.drift)),
        }
        if self.experts:
            data[EXPERT_TABLE] = (EXPERTS, expert_frame(self.blocks))
        if self.allotment:
            data[WIDTHS_TABLE] = (WIDTHS, widths_frame(self.allotment))
        return run_report(self, told, data, {"blocks": (block_rows(blocks), BLOCKS_DESCRIPTION)})


def rolled_back(tune: FinalTuneReport) -> str:
    """Return the note on a final tune that was undone."""
    return tune.notes()[0]


def images_row(quality: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the row on what images were calibrated on; none for a model that reads none."""
    windows = quality.get("image_windows")
    if windows is None:
        return []
    return [("images", calibrated_in_words(windows, quality.get("image_tokens", 0)))]


def _drift_section(reports: Reports) -> Section:
    # The final tune comes last, and only where the recipe asks for it.
    tuned = reports.drift["final tune"].relative_norm() if "final tune" in reports.drift else None
    heads = ["block", "round to nearest", "quantized", "tweaked", "norm tweak"]
    is_trained = reports.recipe.block_training.enabled
    heads += ["trained", "training"] if is_trained else []
    heads += [] if tuned is None else ["final tune"]
    rows = [
        (
            number(block.block, "d"),
            number(rounded.drift_quantized),
            number(block.drift_quantized),
            number(block.drift_tweaked),
            tweak_outcome(block),
            *((number(block.drift_trained), training_outcome(block)) if is_trained else ()),
            *([] if tuned is None else [number(tuned[block.block])]),
        )
        for block, rounded in zip(reports.blocks, reports.baseline, strict=True)
    ]
    method = {"gptq": "after GPTQ", "rtn": "after rounding"}[reports.recipe.quantization.method]
    method = method if reports.recipe.base is None else "with the codes of base"
    series = {
        "round to nearest alone": [block.drift_quantized for block in reports.baseline],
        method: [block.drift_quantized for block in reports.blocks],
    }
    if reports.recipe.norm_tweak.enabled:
        series["after the norm tweak"] = [block.drift_tweaked for block in reports.blocks]
    if is_trained:
        series["after the block training"] = [block.drift_trained for block in reports.blocks]
    if tuned is not None:
        series["after the final tune"] = tuned.tolist()
    title = f"{reports.recipe.name}: drift of the quantized stream"
    lines = drawing(drift_figure(series), "drift", OF_DRIFT, PLOT, title)
    more = f"Mean and variance of every channel: {CHANNELS_PLOT} and {DRIFT_TABLE}."
    return Section(BY_BLOCK, [lines, Table(heads, rows, "Drift by block"), more])


def _channels_section(reports: Reports) -> Section:
    title = f"{reports.recipe.name}: mean and variance of each channel"
    png = channel_figure(reports.drift, title)
    return Section(BY_CHANNEL, [Drawing(OF_CHANNELS, png=png, file=CHANNELS_PLOT)])


def _errors_section(blocks: list[BlockReport]) -> Section:
    rows = [
        (
            number(block.block, "d"),
            layer.layer,
            number(layer.bits, "d"),
            number(layer.weight_error),
            number(layer.output_error),
            _raised(layer.percdamp, layer.damping_raised),
            _raised(layer.ridge, layer.ridge_raised),
            number(layer.dead_columns, "d"),
        )
        for block in blocks
        for layer in block.layers
    ]
    heads = ("block", "layer", "bits", "weight error", "output error", *OF_LINEARS)
    table = Table(heads, rows, "Every quantized linear")
    series = _error_series([block.layers for block in blocks])
    if not series:  # every linear was left in float
        return Section(ERRORS, [table])
    figure = drift_figure(series, "relative error")
    return Section(ERRORS, [drawing(figure, "errors", OF_ERRORS), table])


def _experts_section(blocks: list[BlockReport]) -> Section:
    rows = [
        (
            number(block.block, "d"),
            number(len(block.experts), "d"),
            " ".join(str(one.tokens) for one in block.experts),
            number(block.routed_alike),
            ", ".join(f"{one.expert}: {one.statistics}" for one in block.experts if one.few) or "-",
        )
        for block in blocks
        if block.experts
    ]
    heads = ("block", "experts", "tokens of each", "routed alike", "with few tokens")
    return Section(EXPERTS_BY_BLOCK, [OF_EXPERTS, Table(heads, rows, "Experts by block")])


def _raised(value: float, raised: bool) -> Cell:
    return Cell(f"{value:g} (raised)" if raised else f"{value:g}", value)


def _error_series(layers: list[list[LayerReport]]) -> dict[str, list[float]]:
    """Return mean and worst errors by block; a kind that some block lacks is left out."""
    weights = [[layer.weight_error for layer in block] for block in layers]
    outputs = [
        [layer.output_error for layer in block if layer.output_error is not None]
        for block in layers
    ]
    series = {}
    for name, values in (("weight error", weights), ("output error", outputs)):
        if all(values):
            series[f"{name}, mean of the linears"] = [sum(one) / len(one) for one in values]
            series[f"{name}, worst linear"] = [max(one) for one in values]
    return series
