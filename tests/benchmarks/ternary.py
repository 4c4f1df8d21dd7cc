"""Ternary weights: rounded, by GPTQ, and trained with each norm, schedule and objective.

    python -m tests.benchmarks.ternary [--models llama neox stories] [--long]

Every cell is a run of a real flow, trained on the same number of tokens; finished cells, and
finished segments of a training, are cached, so a study that is stopped goes on where it was.
`--long` trains the best cell of each reference model on for an hour. Reference models train on the
text they were trained on, less what is held out; stories260K, which needs the shared models and
data beside the repository, on 700 stories of 1000. A cell takes the place of an earlier one in
ternary.json, ternary.md and docs/results.md. Pictures show what is trained from GPTQ.
"""

import argparse
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flows.reports.figures.canvas import as_png
from tests.benchmarks.results import DEFAULT_OUT, write_table
from tests.benchmarks.stages import OFF, story_recipe

MODELS = ["llama", "neox", "stories"]

STEPS, BATCH, LENGTH = 120, 8, 256  # 245,760 tokens a cell, about 3 minutes on 2 cores
LONG_STEPS = {"llama": 2400, "neox": 2400}
STARTS = {"absmean": {"lr": 1e-3}, "GPTQ": {}}
NORMS = {"no extra norm": {"norm": "none"}, "extra RMSNorm": {"norm": "rms"}}
SCHEDULES = {
    "lambda 1": {"warmup": 0.0},
    "global": {"warmup": 0.5},
    "layer-wise": {"warmup": 0.5, "scope": "layerwise"},
}
OBJECTIVES = {"cross-entropy": {"objective": "ce"}, "distillation": {"objective": "kd"}}
TERNARY_GRID = {"bits": 2, "symmetric": True, "group_size": None, "levels": "ternary"}
ROUNDED: dict[str, dict[str, Any]] = {
    "round to nearest": OFF,
    "GPTQ": {"norm_tweak.enabled": False, "final_tune.enabled": False},
    "GPTQ, norm tweak, final tune": {},
}


def main() -> None:
    """Run all cells that are asked for and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--long", action="store_true", help="the best cells for an hour each")
    options = parser.parse_args()

    from tasks.engine.environment import prepare_environment
    from tasks.engine.log_files import log_plain_lines

    root = prepare_environment()
    log_plain_lines()
    from tasks.server.api import api_for_this_run

    with api_for_this_run(root):
        for model in options.models:
            base = base_recipe(model, root)
            if options.long and model in LONG_STEPS:
                write(options.out, "long", model, [long_cell(options.out, model, base)])
            elif not options.long:
                cells = [rounded_cell(model, base, name) for name in ROUNDED]
                asked = itertools.product(NORMS, options.schedules, options.objectives)
                for (norm, schedule, objective), start in itertools.product(asked, options.starts):
                    if (start, schedule) != ("GPTQ", "global"):
                        how = (start, norm, schedule, objective)
                        cells.append(trained_cell(model, base, *how))
                write(options.out, "cells", model, cells)


def base_recipe(model: str, root: Path) -> dict[str, Any]:
    """Return what all cells of a model share: its source, text to train on, text to measure on."""
    if model == "stories":
        story = story_recipe(root)
        path, samples = story["calibration"]["path"], 512
        recipe = {"model": story["model"], "evaluation": story["evaluation"]}
    else:
        from normtweak_core.reference.corpus import documents

        corpus, samples = root / "corpus.jsonl", 1096  # an eighth of them is held out
        lines = [json.dumps({"text": d.text}) for d in documents() if not d.held_out]
        corpus.write_text("\n".join(lines) + "\n")
        path = str(corpus)
        recipe = {
            "model": {"source": f"reference:{model}"},
            "evaluation": {"perplexity": {"max_tokens": 32768}},
        }
    data = {"source": "text", "path": path, "samples": samples, "length": LENGTH}
    return recipe | {"name": f"study-ternary-{model}", "data": data}


def rounded_cell(model: str, base: dict[str, Any], name: str) -> dict[str, Any]:
    """Quantize to a ternary grid, one scale a row, without training the weights."""
    from flows.quantize import quantize
    from flows.recipes.quantize import Recipe

    recipe = {key: base[key] for key in ("name", "model", "evaluation")}
    recipe |= {"calibration": base["data"] | {"samples": 64}, "quantization": dict(TERNARY_GRID)}
    for key, value in ROUNDED[name].items():
        *sections, leaf = key.split(".")
        place = recipe
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    return row(model, {"method": name, "tokens": 0}, quantize(Recipe.parse(recipe)))


def trained_cell(
    model: str,
    base: dict[str, Any],
    start: str,
    norm: str,
    schedule: str,
    objective: str,
    steps: int = STEPS,
) -> dict[str, Any]:
    """Train one combination."""
    from flows.recipes.ternary import TernaryRecipe
    from flows.ternary import ternary

    settings = STARTS[start] | NORMS[norm] | SCHEDULES[schedule] | OBJECTIVES[objective]
    settings["start"] = start.lower()
    data = base["data"]
    if steps > STEPS:  # every window once or twice, not twenty times
        data = data | {"samples": 8 * data["samples"]}
    recipe = {key: base[key] for key in ("name", "model", "evaluation")}
    recipe["ternary"] = settings | {"steps": steps, "batch": BATCH, "data": data}
    result = ternary(TernaryRecipe.parse(recipe))
    facts = {"method": "training", "start": start, "norm": norm, "schedule": schedule}
    facts["objective"] = objective
    facts["tokens"] = steps * BATCH * LENGTH
    training = result["training"]
    cell = row(model, facts, result) | {"seconds": training["seconds"]}
    cell["held_out"] = training["held_out"]
    cell["surgery"] = result["surgery"]
    cell["plot"] = str(Path(result["reports_dir"]) / "training.png")
    return cell


def long_cell(out: Path, model: str, base: dict[str, Any]) -> dict[str, Any]:
    """Train the best cell of a finished study for LONG_STEPS."""
    cells = json.loads((out / "ternary.json").read_text())["cells"]
    trained = [c for c in cells if c["model"] == model and c["method"] == "training"]
    best = min(trained, key=lambda cell: cell["perplexity"])
    settings = tuple(best[key] for key in ("start", "norm", "schedule", "objective"))
    return trained_cell(model, base, *settings, steps=LONG_STEPS[model])


def row(model: str, facts: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of one cell."""
    metrics = result["metrics"]
    return {
        "model": model,
        **facts,
        "perplexity_float": metrics["perplexity/float"],
        "perplexity": metrics["perplexity/quantized"],
        "stderr": metrics["perplexity/quantized_stderr"],
        "kl": metrics["kl/mean"],
        "top1_agreement": metrics["top1_agreement"],
        "bits_per_weight": metrics["bits_per_weight"],
        "export_sha256": result["export_sha256"],
    }


def write(out: Path, kind: str, model: str, cells: list[dict[str, Any]]) -> None:
    """Put the cells of a model in the place of its earlier ones, in all three files."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "ternary.json"
    known: dict[str, Any] = {"cells": [], "long": []}
    if file.is_file():
        known |= json.loads(file.read_text())
    for cell in known["cells"] + known["long"]:
        cell.setdefault("start", "absmean")  # of before there was another
    if kind == "long":
        shutil.copy(cells[0]["plot"], out / f"ternary-{model}.png")
        (out / f"ternary-tokens-{model}.png").write_bytes(long_curve(cells[0]))
    kept = [{key: value for key, value in cell.items() if key != "plot"} for cell in cells]
    again = {(cell["model"], _label(cell)) for cell in kept}
    kept += [cell for cell in known[kind] if (cell["model"], _label(cell)) not in again]
    known[kind] = sorted(kept, key=lambda cell: MODELS.index(cell["model"]))
    known["command"] = "python -m tests.benchmarks.ternary; the same with --long"
    file.write_text(json.dumps(known, indent=1) + "\n")
    if kind == "cells":
        (out / f"ternary-cells-{model}.png").write_bytes(curves(model, cells))
    write_table(out, "ternary", tables(known))


def long_curve(cell: dict[str, Any]) -> bytes:
    """Return a picture of the held-out perplexity of a long training, by tokens."""
    figure, (axes,) = _figure(1)
    tokens = [int(step) * BATCH * LENGTH / 1e6 for step in cell["held_out"]]
    axes.plot(tokens, [math.exp(loss) for loss in cell["held_out"].values()], marker="o")
    axes.axhline(math.exp(cell["surgery"]["float"]), color="gray", label="float, training text")
    axes.set(
        title=f"{cell['model']}: {_label(cell)}",
        xlabel="million tokens",
        ylabel="perplexity of held-out training windows",
    )
    axes.legend(frameon=False)
    return as_png(figure)


def _figure(columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # a canvas of its own: pyplot would hold global state
    axes = list(figure.subplots(1, columns, sharey=True, squeeze=False)[0])
    for one in axes:
        one.grid(visible=True, alpha=0.3)
    return figure, axes


def curves(model: str, cells: list[dict[str, Any]]) -> bytes:
    """Return a picture of the held-out perplexity of every trained cell, by tokens."""
    figure, both = _figure(2)
    styles = dict(zip(NORMS, ("--", "-"), strict=True))
    colors = dict(zip(SCHEDULES, ("C0", "C1", "C2"), strict=True))
    for axes, objective in zip(both, OBJECTIVES, strict=True):
        for cell in cells:
            if (cell.get("objective"), cell.get("start")) != (objective, "GPTQ"):
                continue
            steps = [int(step) for step in cell["held_out"]]
            axes.plot(
                [step * BATCH * LENGTH / 1e3 for step in steps],
                [math.exp(loss) for loss in cell["held_out"].values()],
                styles[cell["norm"]],
                color=colors[cell["schedule"]],
                label=f"{cell['norm']}, {cell['schedule']}",
            )
        axes.set(title=f"{model}, {objective}", xlabel="thousand tokens", yscale="log")
    figure.axes[0].set(ylabel="held-out perplexity, all blocks ternary")
    figure.axes[0].legend(frameon=False, fontsize="small")
    return as_png(figure)


def tables(known: dict[str, Any]) -> str:
    """Return perplexities as a table, a column a model, and the long trainings below."""
    models = [m for m in MODELS if any(c["model"] == m for c in known["cells"])]
    by_label: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in known["cells"]:
        by_label.setdefault(_label(cell), {})[cell["model"]] = cell
    lines = ["| | " + " | ".join(models) + " |", "|---|" + "---:|" * len(models)]
    floats = {c["model"]: c["perplexity_float"] for c in known["cells"]}
    lines.append("| float | " + " | ".join(f"{floats[m]:.3f}" for m in models) + " |")
    for label, found in by_label.items():
        values = [f"{found[m]['perplexity']:.3f}" if m in found else "" for m in models]
        lines.append(f"| {label} | " + " | ".join(values) + " |")
    if known["long"]:
        lines += ["", "| trained on | tokens | minutes | float | ternary | times float |"]
        lines.append("|---|---:|---:|---:|---:|---:|")
    for cell in known["long"]:
        ratio = cell["perplexity"] / cell["perplexity_float"]
        lines.append(
            f"| {cell['model']}: {_label(cell)} | {cell['tokens']:,} | {cell['seconds'] / 60:.0f} "
            f"| {cell['perplexity_float']:.3f} | {cell['perplexity']:.3f} | {ratio:.3f} |"
        )
    for cell in known["long"]:
        lines += ["", f"Perplexity of held-out training windows of {cell['model']}, by tokens: "]
        lines[-1] += ", ".join(
            f"{int(step) * BATCH * LENGTH / 1e6:.2f} M {math.exp(loss):.2f}"
            for step, loss in cell["held_out"].items()
        )
        lines[-1] += "."
    return "\n".join(lines) + "\n"


def _label(cell: dict[str, Any]) -> str:
    if cell["method"] != "training":
        return cell["method"]
    return f"from {cell['start']}: {cell['norm']}, {cell['schedule']}, {cell['objective']}"


if __name__ == "__main__":
    main()
