"""The page of a quantization: result, drift and errors block by block, everything it rests on."""

from typing import TYPE_CHECKING

from flows.reports.html import (
    Cell,
    Column,
    Page,
    Section,
    Table,
    drawing,
    number,
    page_html,
    picture,
)
from flows.reports.run import (
    closing_sections,
    outcome_section,
    result_section,
    result_tiles,
    size_section,
    text_section,
)
from flows.reports.words import result_rows, scheme, stage_rows
from normtweak_core.quantization.report import BlockReport, LayerReport

if TYPE_CHECKING:
    from flows.reports.quantize import Reports

ERRORS = (
    "Relative errors of the linears of each block. Weight error is |W - Q| / |W|; output error is "
    "the same of a layer's output over the calibration tokens, where W carries the correction for "
    "its input's error."
)
DRIFT = (
    "|x_q - x_f| / |x_f| behind each block: how far the quantized stream is from the float stream "
    "on the calibration set."
)
CHANNELS = (
    "Mean and variance of each channel on the calibration set against the float model's, in its "
    "deviations. Above, block by block: the median over channels and, shaded, the middle half. "
    "Below: one dot a channel behind the last block. drift.parquet holds every number."
)


def quantize_page(reports: "Reports", drift: dict[str, list[float]], channels: bytes) -> str:
    """Return the page of a run; equal runs give equal text.

    Args:
        reports: What it is made of.
        drift: One value a block in every series.
        channels: PNG of the drift of every channel.
    """
    recipe, metrics = reports.recipe, reports.metrics
    lead = f"{recipe.model.source} {scheme(recipe)}. Export: {reports.export.name}."
    header = ("", "float", "quantized", "difference")
    models = [
        ("float", reports.float_bytes, metrics, "perplexity/float"),
        ("quantized", metrics["size_bytes"], metrics, "perplexity/quantized"),
    ]
    stages = stage_rows(reports.blocks, reports.final_tune, reports.quality, reports.float_type)
    sections = [
        result_section(reports, header, result_rows(metrics)),
        size_section(models),
        outcome_section(reports, stages),
        _drift_section(reports, drift),
        Section("Drift, channel by channel", [picture(channels, CHANNELS)]),
        _errors_section(reports.blocks),
        text_section(reports.quality, recipe.seed, "Calibration set"),
        *closing_sections(reports),
    ]
    return page_html(Page("Quantization", recipe.name, lead, result_tiles(reports), sections))


def _drift_section(reports: "Reports", series: dict[str, list[float]]) -> Section:
    from flows.reports.figures.drift_lines import drift_figure

    # The final tune comes last, and only where the recipe asks for it.
    tuned = reports.drift["final tune"].relative_norm() if "final tune" in reports.drift else None
    columns = [
        Column("block"),
        Column("round to nearest"),
        Column("quantized"),
        Column("tweaked"),
        Column("norm tweak", numbers=False),
        *([] if tuned is None else [Column("final tune")]),
    ]
    rows = [
        (
            number(block.block, "d"),
            number(rounded.drift_quantized),
            number(block.drift_quantized),
            number(block.drift_tweaked),
            Cell(_outcome(block)),
            *([] if tuned is None else [number(tuned[block.block])]),
        )
        for block, rounded in zip(reports.blocks, reports.baseline, strict=True)
    ]
    lines = drawing(drift_figure(series, ""), "drift", DRIFT)
    return Section("Drift, block by block", [lines, Table(columns, rows, "Drift by block")])


def _outcome(block: BlockReport) -> str:
    return "off" if block.tweak is None else block.tweak.outcome


def _errors_section(blocks: list[BlockReport]) -> Section:
    from flows.reports.figures.drift_lines import drift_figure

    columns = (
        Column("block"),
        Column("layer", numbers=False),
        Column("bits"),
        Column("weight error"),
        Column("output error"),
        Column("damping"),
        Column("ridge"),
        Column("dead columns"),
    )
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
    table = Table(columns, rows, "Every quantized linear")
    series = _error_series([block.layers for block in blocks])
    if not series:  # every linear was left in float
        return Section("Errors, block by block", [table])
    figure = drift_figure(series, "", "relative error")
    return Section("Errors, block by block", [drawing(figure, "errors", ERRORS), table])


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
