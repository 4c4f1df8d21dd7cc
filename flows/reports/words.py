"""The reports of a run in words and numbers, as Markdown."""

import math
from typing import TYPE_CHECKING, Any

from flows.recipes.quantize import Recipe
from normtweak_core.quantization.report import BlockReport
from normtweak_core.tweak.report import FinalTuneReport
from tasks.results import FloatType

if TYPE_CHECKING:
    import pandas as pd

PLOT = "drift.png"
CHANNELS_PLOT = "drift-channels.png"
DRIFT_TABLE = "drift.parquet"
NO_NORMS = "no norm of this model has a weight"
LINEAR_COLUMNS = (
    "block",
    "layer",
    "bits",
    "weight error",
    "output error",
    "damping",
    "ridge",
    "dead columns",
)

# Two numbers nearer than this, as a fraction, are one: half precision moves the perplexity of the
# reference models by 1e-5 to 1e-4 and their KL by up to 0.5 %.
SAME = 1e-2

VERDICTS = {
    "ok": "usable: nothing suspicious was found",
    "warning": "used, with a warning",
    "refused": "not usable",
}


def blocks_markdown(recipe: Recipe, table: "pd.DataFrame") -> str:
    """Return the blocks, then every quantized linear.

    Args:
        recipe: Names the run.
        table: A valid block table.
    """
    blocks = [
        (
            block,
            _number(layers["drift_rtn"].iloc[0]),
            _number(layers["drift_quantized"].iloc[0]),
            _number(layers["drift_tweaked"].iloc[0]),
            layers["tweak"].iloc[0],
        )
        for block, layers in table.groupby("block")
    ]
    linears = [
        (
            row.block,
            f"`{row.layer}`",
            row.bits,
            _number(row.weight_error),
            _number(row.output_error),
            f"{row.percdamp:g}" + (" (raised)" if row.damping_raised else ""),
            f"{row.ridge:g}" + (" (raised)" if row.ridge_raised else ""),
            row.dead_columns,
        )
        for row in table.itertuples()
    ]
    return "\n".join(
        [
            f"# {recipe.name}: blocks",
            "",
            "Drift is |x_q - x_f| / |x_f| behind the block: how far the quantized stream is from "
            "the float stream on the calibration set.",
            "",
            *markdown_table(
                ("block", "round to nearest", "quantized", "tweaked", "norm tweak"),
                blocks,
                "rrrrl",
            ),
            "",
            "## Linears",
            "",
            "Weight error is |W - Q| / |W|. Output error is the same of the layer's output over "
            "the calibration tokens, where W carries the correction for its input's error.",
            "",
            *markdown_table(LINEAR_COLUMNS, linears, "rlrrrrrr"),
            "",
        ]
    )


def calibration_markdown(recipe: Recipe, quality: dict[str, Any]) -> str:
    """Return what is known of the calibration set, the verdict first.

    Args:
        recipe: Names the run.
        quality: A `QualityReport` as JSON.
    """
    return "\n".join(
        [
            f"# {recipe.name}: calibration set",
            "",
            f"{windows_of(quality)}, source `{quality['source']}`, seed {recipe.seed}.",
            "",
            f"**Verdict: {VERDICTS[quality['verdict']]}.**",
            *(f"\n* {reason}" for reason in quality["reasons"]),
            "",
            *markdown_table(("what", "value"), calibration_rows(quality), "ll"),
            "",
        ]
    )


def windows_of(quality: dict[str, Any]) -> str:
    """Return how much text a calibration set has."""
    samples, length = quality["samples"], quality["length"]
    return f"{samples} windows of {length} tokens ({samples * length:,} tokens)"


def calibration_rows(quality: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is known of a calibration set as rows: what, value.

    Args:
        quality: A `QualityReport` as JSON.
    """
    scripts = ", ".join(f"{name} {percent(share)}" for name, share in quality["scripts"].items())
    distinct = quality["distinct_in_window"].items()
    return [
        ("Tokens of the vocabulary that occur", percent(quality["token_coverage"])),
        *(
            (
                f"Distinct {n}-grams in a window, in the set",
                f"{percent(share)}, {percent(quality['distinct_in_set'][n])}",
            )
            for n, share in distinct
        ),
        ("Windows that mostly repeat themselves", percent(quality["repetitive_windows"])),
        ("Windows that copy another", str(quality["duplicate_windows"])),
        ("Letters by script", scripts or "no letters"),
        ("Mean loss of the float model", f"{quality['mean_nll']:.3f} nats per token"),
    ]


def summary_markdown(
    recipe: Recipe,
    metrics: dict[str, float],
    blocks: list[BlockReport],
    final_tune: FinalTuneReport | None,
    quality: dict[str, Any],
    problems: list[str],
    notes: list[str],
    float_type: FloatType,
    export: str,
    plot: str,
) -> str:
    """Return the result of a run on one page.

    Args:
        recipe: What was asked for.
        metrics: Of the evaluation.
        blocks: What happened to each block.
        final_tune: What became of the final tune; None: it was off.
        quality: A `QualityReport` as JSON.
        problems: What a person must act on, one sentence each.
        notes: What is good to know, one sentence each.
        float_type: Of the export.
        export: Name of the export folder.
        plot: Address of the drift plot.
    """
    return "\n".join(
        [
            f"# {recipe.name}",
            "",
            f"`{recipe.model.source}` {scheme(recipe)}. Export: `{export}`.",
            "",
            *markdown_table(("", "float", "quantized", "difference"), result_rows(metrics), "lrrr"),
            "",
            f"On {metrics['tokens']:,.0f} predicted tokens{precision(metrics)}. Size counts "
            "weights, configuration and tokenizer; bits per weight count codes, scales and zeros "
            "of the quantized linears.",
            "",
            "## Stages",
            "",
            *markdown_table(
                ("stage", "outcome"), stage_rows(blocks, final_tune, quality, float_type), "ll"
            ),
            "",
            "## Problems",
            "",
            *([f"* {problem}" for problem in problems] or ["None."]),
            "",
            *(["## Notes", "", *[f"* {note}" for note in notes], ""] if notes else []),
            "## Drift",
            "",
            f"![Drift of the quantized stream, block by block]({plot})",
            "",
            f"Mean and variance of every channel: `{CHANNELS_PLOT}` and `{DRIFT_TABLE}`.",
            "",
        ]
    )


def stage_rows(
    blocks: list[BlockReport],
    final_tune: FinalTuneReport | None,
    quality: dict[str, Any],
    float_type: FloatType,
) -> list[tuple[str, str]]:
    """Return what became of every stage as rows: stage, outcome; arguments as the summary's."""
    return [
        ("calibration", VERDICTS[quality["verdict"]]),
        ("float type", float_type.in_words()),
        ("norm tweak", _tweak_outcome(blocks)),
        ("final tune", _final_outcome(final_tune)),
    ]


def percent(value: float, signed: bool = False) -> str:
    """Return a share as percent, with one decimal."""
    return f"{100 * value:+.1f} %" if signed else f"{100 * value:.1f} %"


def result_rows(metrics: dict[str, float]) -> list[tuple[str, ...]]:
    """Return the metrics of an evaluation as rows: what, float, quantized, difference."""

    def measured(name: str, digits: int = 3, sign: str = "") -> str:
        stderr = metrics.get(_stderr(name))
        value = f"{metrics[name]:{sign}.{digits}f}"
        return value if stderr is None else f"{value} ± {stderr:.{digits}f}"

    return [
        (
            "perplexity",
            measured("perplexity/float"),
            measured("perplexity/quantized"),
            f"{measured('perplexity/ratio')} times",
        ),
        (
            "loss (nats per token)",
            measured("nll/float"),
            measured("nll/quantized"),
            measured("nll_difference/mean", sign="+"),
        ),
        ("KL divergence (nats per token)", "", measured("kl/mean", 4), ""),
        ("the other way", "", measured("kl_reverse/mean", 4), ""),
        ("same first choice", "", _share(metrics, "top1_agreement"), ""),
        *_float32_rows(metrics),
        *_task_rows(metrics),
        ("size", "", f"{metrics['size_bytes'] / 1e6:,.2f} MB", ""),
        ("bits per weight", "", f"{metrics['bits_per_weight']:.3f}", ""),
    ]


def _float32_rows(metrics: dict[str, float]) -> list[tuple[str, ...]]:
    """Return what float32 makes of the export's weights, where that is another number."""
    names = {"perplexity": "perplexity/quantized", "KL divergence": "kl/mean"}
    return [
        (f"{what}, if computed in float32", "", f"{plain:.4f}", f"{plain - metrics[name]:+.4f}")
        for what, name in names.items()
        if (plain := metrics.get(f"{name}_float32")) is not None
        and abs(plain - metrics[name]) > SAME * abs(metrics[name])
    ]


def _task_rows(metrics: dict[str, float]) -> list[tuple[str, ...]]:
    rows = []
    for name in metrics:
        measure, _, whose = name.rpartition("/")
        if whose != "float" or not measure.endswith(("/acc", "/acc_norm")):
            continue
        stderr = metrics.get(f"{measure}/drop_stderr")
        change = percent(-metrics[f"{measure}/drop"], signed=True)
        change += "" if stderr is None else f" ± {percent(stderr)}"
        rows.append(
            (
                measure,
                _share(metrics, name),
                _share(metrics, f"{measure}/quantized"),
                f"{change} (p {metrics[f'{measure}/mcnemar_p']:.3g})",
            )
        )
    return rows


def _share(metrics: dict[str, float], name: str) -> str:
    stderr = metrics.get(_stderr(name))
    value = percent(metrics[name])
    return value if stderr is None else f"{value} ± {percent(stderr)}"


def precision(metrics: dict[str, float]) -> str:
    """Return what the ± means; a single window leaves every standard error out."""
    if _stderr("perplexity/quantized") in metrics:
        return "; ± is one standard error"
    return " of a single window, too few for a standard error"


def _stderr(name: str) -> str:
    return f"{name.removesuffix('/mean')}/stderr" if name.endswith("/mean") else f"{name}_stderr"


def scheme(recipe: Recipe) -> str:
    """Return what was made of the model, such as "in 4 bits by GPTQ"."""
    config = recipe.quantization
    method = {"gptq": "GPTQ", "rtn": "round to nearest"}[config.method]
    groups = f"groups of {config.group_size}" if config.group_size else "one scale per row"
    grid = "symmetric" if config.symmetric else "asymmetric"
    return f"in {config.bits} bits by {method} ({grid}, {groups})"


def _tweak_outcome(blocks: list[BlockReport]) -> str:
    tweaks = {block.block: block.tweak for block in blocks if block.tweak}
    if not tweaks:
        return "off"
    if not any(tweak.trained for tweak in tweaks.values()):
        return f"nothing to train: {NO_NORMS}"
    back = [str(index) for index, tweak in tweaks.items() if tweak.outcome == "rolled back"]
    kept = sum(tweak.accepted for tweak in tweaks.values())
    where = f"; rolled back in {', '.join(back)}" if back else ""
    return f"kept in {kept} of {len(tweaks)} blocks{where}"


def _final_outcome(final_tune: FinalTuneReport | None) -> str:
    if final_tune is None:
        return "off"
    if not final_tune.trained:
        return f"nothing to train: {NO_NORMS}"
    return (
        f"{final_tune.outcome}: held-out divergence {final_tune.held_out_before:.4g} → "
        f"{final_tune.held_out_after:.4g} nats per token"
    )


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def markdown_table(
    header: tuple[str, ...], rows: list[tuple[object, ...]], alignment: str
) -> list[str]:
    """Return the lines of a table; alignment has a letter a column, l or r."""
    rule = ["---:" if side == "r" else "---" for side in alignment]
    return ["| " + " | ".join(map(str, row)) + " |" for row in (header, rule, *rows)]
