"""Perplexity stage by stage: RTN, GPTQ, + propagation, + norm tweaking, + final tune.

    python -m tests.benchmarks.stages [--models llama neox stories] [--out docs/results]

Every cell is a run of the real flow with some stages switched off; cells that share stages share
their cached results, so a study that is stopped goes on where it was. Once a model is through, its
cells take the place of its earlier ones in stages.json, stages.md and the table of the README.
"stories" needs the shared models and data beside the repository.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from tests.benchmarks.results import DEFAULT_OUT, REPOSITORY, write_table

MODELS = ["llama", "neox", "stories"]

OFF: dict[str, Any] = {
    "quantization.method": "rtn",
    "quantization.propagation.alpha": 0.0,
    "norm_tweak.enabled": False,
    "final_tune.enabled": False,
}
STAGES: dict[str, dict[str, Any]] = {
    "RTN": OFF,
    "GPTQ": OFF | {"quantization.method": "gptq"},
    "+ propagation": OFF | {"quantization.method": "gptq", "quantization.propagation.alpha": 1.0},
    "+ norm tweaking": {"final_tune.enabled": False},
    "+ final tune": {},
}
REFERENCE_WIDTHS = {"2-bit g64": (2, 64), "3-bit g64": (3, 64), "4-bit g64": (4, 64)}
STORY_WIDTHS = {
    "2-bit per channel": (2, None),
    "3-bit per channel": (3, None),
    "4-bit per channel": (4, None),
}


def main() -> None:
    """Run all cells that are asked for and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()

    from tasks.engine.environment import prepare_environment
    from tasks.engine.log_files import log_plain_lines

    root = prepare_environment()
    log_plain_lines()
    from tasks.server.api import api_for_this_run

    with api_for_this_run(root):
        for model in options.models:
            base = story_recipe(root) if model == "stories" else reference_recipe(model)
            widths = STORY_WIDTHS if model == "stories" else REFERENCE_WIDTHS
            cells = [
                cell(model, width, stage, base, bits, group_size, changes)
                for width, (bits, group_size) in widths.items()
                for stage, changes in STAGES.items()
            ]
            write(options.out, model, cells)
            if model == "llama":
                full = next(c for c in cells if c["stage"] == list(STAGES)[-1])  # 2 bits
                shutil.copy(Path(full["plot"]), options.out / "drift.png")


def reference_recipe(model: str) -> dict[str, Any]:
    """Return the base recipe of a reference model: calibration text written by the model."""
    return {
        "name": f"study-{model}",
        "model": {"source": f"reference:{model}"},
        "calibration": {"source": "generated", "samples": 64, "length": 256},
        "evaluation": {"perplexity": {"max_tokens": 32768}},
    }


def story_recipe(root: Path) -> dict[str, Any]:
    """Return the base recipe of stories260K: 700 stories to calibrate, the others to evaluate."""
    shared = REPOSITORY.parent / "shared"
    stories = (shared / "data/tinystories-1000/stories.clean.jsonl").read_text().splitlines()
    calibration, held_out = root / "calibration.jsonl", root / "evaluation.jsonl"
    calibration.write_text("\n".join(stories[:700]) + "\n")
    held_out.write_text("\n".join(stories[700:]) + "\n")
    return {
        "name": "study-stories260k",
        "model": {"source": str(shared / "models/stories260K")},
        "calibration": {"source": "text", "path": str(calibration), "samples": 64, "length": 256},
        "evaluation": {"perplexity": {"path": str(held_out)}},
    }


def cell(
    model: str,
    width: str,
    stage: str,
    base: dict[str, Any],
    bits: int,
    group_size: int | None,
    changes: dict[str, Any],
) -> dict[str, Any]:
    """Run one cell and return its numbers."""
    from flows.quantize import quantize
    from flows.recipes.quantize import Recipe

    data = json.loads(json.dumps(base))
    data["quantization"] = {"bits": bits, "group_size": group_size}
    for key, value in changes.items():
        place = data
        *sections, leaf = key.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    result = quantize(Recipe.parse(data))
    metrics = result["metrics"]
    return {
        "model": model,
        "width": width,
        "stage": stage,
        "perplexity_float": metrics["perplexity/float"],
        "perplexity": metrics["perplexity/quantized"],
        "stderr": metrics["perplexity/quantized_stderr"],
        "kl": metrics["kl/mean"],
        "top1_agreement": metrics["top1_agreement"],
        "bits_per_weight": metrics["bits_per_weight"],
        "blocks": result["blocks"],
        "problems": result["problems"],
        "export_sha256": result["export_sha256"],
        "plot": str(Path(result["reports_dir"]) / "drift.png"),
    }


def write(out: Path, model: str, cells: list[dict[str, Any]]) -> None:
    """Put the cells of a model in the place of its earlier ones, in all three files."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "stages.json"
    known = json.loads(file.read_text())["cells"] if file.is_file() else []
    kept = [{key: value for key, value in cell.items() if key != "plot"} for cell in cells]
    kept += [cell for cell in known if cell["model"] != model]
    order = list(dict.fromkeys([*MODELS, *(cell["model"] for cell in kept)]))
    kept.sort(key=lambda cell: order.index(cell["model"]))
    record = {"command": "python -m tests.benchmarks.stages", "cells": kept}
    file.write_text(json.dumps(record, indent=1) + "\n")
    write_table(out, "stages", table(kept))


def table(cells: list[dict[str, Any]]) -> str:
    """Return perplexities as a table, a row per model and width."""
    rows = [
        "| model | width | bits/weight | float | " + " | ".join(STAGES) + " |",
        "|---" * (4 + len(STAGES)) + "|",
    ]
    keys = dict.fromkeys((c["model"], c["width"]) for c in cells)
    for model, width in keys:
        found = {c["stage"]: c for c in cells if (c["model"], c["width"]) == (model, width)}
        any_cell = next(iter(found.values()))
        values = [f"{found[s]['perplexity']:.3f}" if s in found else "" for s in STAGES]
        rows.append(
            f"| {model} | {width} | {any_cell['bits_per_weight']:.2f} | "
            f"{any_cell['perplexity_float']:.3f} | " + " | ".join(values) + " |"
        )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
