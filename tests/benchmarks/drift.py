"""Drift of every channel stage by stage, and whether less of it means a better model.

    python -m tests.benchmarks.drift [--models llama neox] [--out docs/results]

The cells are those of the stages study, with whose results it shares its cache. Drift is measured
on the calibration windows, perplexity on held-out text. Writes drift-channels.json, .md, and a
figure a model like Figure 1 of arXiv 2309.02784. A model takes the place of its earlier cells.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from flows.reports.figures.drift_channels import channel_figure
from normtweak_core.evaluate.channel_drift import ChannelDrift
from tests.benchmarks.rank_correlation import correlation_within, rank_correlation
from tests.benchmarks.results import DEFAULT_OUT, machine, table
from tests.benchmarks.stages import REFERENCE_WIDTHS, STAGES, cell, reference_recipe

NAME = "drift-channels"
FIGURE_WIDTH = "2-bit g64"
# Which stage of its run a cell of the study ends with.
LAST = {"+ norm tweaking": "norm tweak", "+ final tune": "final tune"}
MEASURES: dict[str, str] = {  # of one block, from a cell
    "relative norm": "|x_q - x_f| / |x_f|",
    "mean shift": "median over channels of |mean shift| / float deviation",
    "spread": "median over channels of |ln(deviation / float deviation)|",
    "channel loss": "L_dist: mean over channels of |difference of means| + that of variances",
}


def main() -> None:
    """Run all cells that are asked for and write table, figures and correlations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["llama", "neox"])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()

    from tasks.engine.environment import prepare_environment
    from tasks.engine.log_files import log_plain_lines

    root = prepare_environment()
    log_plain_lines()
    from tasks.server.api import api_for_this_run

    facts = machine()
    with api_for_this_run(root):
        for model in options.models:
            found = [
                measured(cell(model, width, stage, reference_recipe(model), *grid, changes))
                for width, grid in REFERENCE_WIDTHS.items()
                for stage, changes in STAGES.items()
            ]
            drifts = {c["stage"]: c["drift"] for c in found if c["width"] == FIGURE_WIDTH}
            picture = channel_figure(drifts, f"reference:{model}, {FIGURE_WIDTH}")
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"{NAME}-{model}.png").write_bytes(picture)
            write(options.out, model, [summary(one) for one in found], facts)


def measured(found: dict[str, Any]) -> dict[str, Any]:
    """Return a cell with the drift behind its blocks at its last stage."""
    from tasks.tables.drift import DRIFT, stages_of

    stages = stages_of(DRIFT.read(Path(found["plot"]).with_name("drift.parquet")))
    return found | {"drift": stages[LAST.get(found["stage"], "quantized")]}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a cell that are kept: its quality, and each measure block by block."""
    kept = ("model", "width", "stage", "perplexity_float", "perplexity", "kl")
    drift: ChannelDrift = found["drift"]
    values = {
        "relative norm": drift.relative_norm(),
        "mean shift": np.nanmedian(np.abs(drift.mean_shift()), axis=1),
        "spread": np.nanmedian(np.abs(np.log(drift.spread())), axis=1),
        "channel loss": drift.channel_loss(),
    }
    return {key: found[key] for key in kept} | {
        name: [float(f"{value:.6g}") for value in blocks] for name, blocks in values.items()
    }


def write(out: Path, model: str, cells: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Put the cells of a model in the place of its earlier ones."""
    file = out / f"{NAME}.json"
    known = json.loads(file.read_text())["cells"] if file.is_file() else []
    cells = sorted([*cells, *(c for c in known if c["model"] != model)], key=lambda c: c["model"])
    record = {"command": "python -m tests.benchmarks.drift", "machine": facts, "cells": cells}
    file.write_text(json.dumps(record, indent=1) + "\n")
    (out / f"{NAME}.md").write_text(page(cells))


def page(cells: list[dict[str, Any]]) -> str:
    """Return the drift of every cell, then the correlations."""
    drift = table(
        ["model", "width", "stage", "perplexity", "KL", *MEASURES],
        [
            [c["model"], c["width"], c["stage"], f"{c['perplexity']:.3f}", c["kl"]]
            + [c[name][-1] for name in MEASURES]
            for c in cells
        ],
    )
    taken = steps(cells)
    num_pairs = len({(step["model"], step["width"]) for step in taken})
    columns = [f"{name}, {how}" for name in OUTCOMES for how in ("all points", "within")]
    return "\n".join(
        [
            "Drift behind the last block, after each stage.",
            "",
            drift,
            *(f"* {name}: {meaning}" for name, meaning in MEASURES.items()),
            "",
            f"Steps from one stage to the next: {len(taken)}, over {num_pairs} pairs of "
            "model and width. Spearman correlation of ln(drift before / after) with "
            "ln(perplexity before / after), and with ln(KL before / after).",
            "",
            table(["drift, behind the last block", *columns], overall(taken)),
            "All points: steps of one model and width are not independent, so that p is too small. "
            "Within: shuffled inside each model and width alone.",
            "",
            table(["step", *MEASURES], by_step(taken)),
            "Correlation with perplexity of one step over models and widths.",
            "",
            table(["model", "block", *MEASURES], by_block(taken)),
            "Correlation with perplexity over steps and widths of one model, drift behind one "
            "block. No p is corrected for how many there are.",
            "",
        ]
    )


def steps(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what each stage brought over the one before, as natural logarithms of ratios."""
    found = []
    for model, width in dict.fromkeys((c["model"], c["width"]) for c in cells):
        by_stage = {c["stage"]: c for c in cells if (c["model"], c["width"]) == (model, width)}
        for before, after in itertools.pairwise(STAGES):
            old, new = by_stage[before], by_stage[after]
            changes = {"model": model, "width": width, "step": after}
            for name in ("perplexity", "kl", *MEASURES):
                changes[name] = np.log(np.divide(old[name], new[name]))
            found.append(changes)
    return found


OUTCOMES = {"perplexity": "perplexity", "KL": "kl"}


def overall(taken: list[dict[str, Any]]) -> list[list[Any]]:
    """Return a row a measure: against each outcome, over all points and within the pairs."""
    rows = []
    for name in MEASURES:
        x, row = _behind_last(taken, name), [name]
        for outcome in OUTCOMES.values():
            y = _behind_last(taken, outcome)
            pairs = [(step["model"], step["width"]) for step in taken]
            row += [rank_correlation(x, y), correlation_within(x, y, pairs)]
        rows.append(row)
    return rows


def by_step(taken: list[dict[str, Any]]) -> list[list[Any]]:
    """Return a row a step: over models and widths."""
    rows = []
    for stage in list(STAGES)[1:]:
        mine = [step for step in taken if step["step"] == stage]
        gains = _behind_last(mine, "perplexity")
        found = [rank_correlation(_behind_last(mine, name), gains) for name in MEASURES]
        rows.append([stage, *found])
    return rows


def by_block(taken: list[dict[str, Any]]) -> list[list[Any]]:
    """Return a row a block of each model: over steps and widths."""
    rows = []
    for model in dict.fromkeys(step["model"] for step in taken):
        mine = [step for step in taken if step["model"] == model]
        gains = _behind_last(mine, "perplexity")
        for block in range(len(mine[0]["relative norm"])):
            found = [
                rank_correlation([step[name][block] for step in mine], gains) for name in MEASURES
            ]
            rows.append([model, block, *found])
    return rows


def _behind_last(taken: list[dict[str, Any]], name: str) -> list[float]:
    """Return what each step brought: of a measure, behind the last block."""
    return [float(np.atleast_1d(step[name])[-1]) for step in taken]


if __name__ == "__main__":
    main()
