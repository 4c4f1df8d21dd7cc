"""How much of the distance to the float model fine-tuning takes away, at 2, 3 and 4 bits.

    python -m tests.benchmarks.finetune [--models llama neox] [--bits 2 3 4]

Each row is `normtweak quantize` (all stages) and then `normtweak finetune` on its export: with
whole latent weights, at 2 bits also for twice as long, and with a low-rank update (QA-LoRA).
Finished stages are cached. A model's rows take the place of its earlier ones in finetune.json,
finetune.md and the table of docs/results.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tests.benchmarks.results import DEFAULT_OUT, write_table
from tests.benchmarks.stages import reference_recipe

MODELS = ["llama", "neox"]
STEPS = {"block_steps": 200, "steps": 600}
DATA = {"source": "generated", "samples": 1024, "length": 256}
WAYS: dict[str, dict[str, Any]] = {
    "whole weights": {},
    "whole weights, twice as long": {"steps": 1200, "data": DATA | {"samples": 2048}},
    "QA-LoRA, rank 32": {"lora": {"rank": 32}},
}
BITS = {2: list(WAYS), 3: ["whole weights"], 4: ["whole weights"]}


def main() -> None:
    """Run all rows that are asked for and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--bits", nargs="+", type=int, choices=list(BITS), default=list(BITS))
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()

    from tasks.engine.environment import prepare_environment
    from tasks.engine.log_files import log_plain_lines

    root = prepare_environment()
    log_plain_lines()
    from tasks.server.api import api_for_this_run

    with api_for_this_run(root):
        for model in options.models:
            for bits in options.bits:
                rows = [row(model, bits, way) for way in BITS[bits]]
                write(options.out, rows)


def row(model: str, bits: int, way: str) -> dict[str, Any]:
    """Quantize and train on; return the numbers."""
    from flows.finetune import finetune
    from flows.quantize import quantize
    from flows.recipes.finetune import FinetuneRecipe
    from flows.recipes.quantize import Recipe

    base = reference_recipe(model)
    base["quantization"] = {"bits": bits, "group_size": 64}
    start = quantize(Recipe.parse(base))
    recipe = {
        "name": f"study-finetune-{model}",
        "model": {"source": start["export_dir"]},
        "finetune": STEPS | {"data": DATA} | WAYS[way],
        "evaluation": base["evaluation"],
    }
    result = finetune(FinetuneRecipe.parse(recipe))
    metrics = result["metrics"]
    return {
        "model": model,
        "bits": bits,
        "way": way,
        "perplexity_float": metrics["perplexity/float"],
        "perplexity_start": metrics["start/perplexity/quantized"],
        "perplexity": metrics["perplexity/quantized"],
        "kl_start": metrics["start/kl/mean"],
        "kl": metrics["kl/mean"],
        "distance_kept": metrics["distance_kept"],
        "bits_per_weight": metrics["bits_per_weight"],
        "tokens": result["training"]["tokens"],
        "seconds": result["training"]["seconds"] + sum(b["seconds"] for b in result["blocks"]),
        "blocks": [(b["error_before"], b["error_after"]) for b in result["blocks"]],
        "export_sha256": result["export_sha256"],
    }


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows in the place of the earlier ones of their model and width, in all three files."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "finetune.json"
    known = json.loads(file.read_text())["rows"] if file.is_file() else []
    new = {(r["model"], r["bits"]) for r in rows}
    kept = rows + [r for r in known if (r["model"], r["bits"]) not in new]
    kept.sort(key=lambda r: (MODELS.index(r["model"]), r["bits"], list(WAYS).index(r["way"])))
    content = {"rows": kept, "command": "python -m tests.benchmarks.finetune"}
    file.write_text(json.dumps(content, indent=1) + "\n")
    write_table(out, "finetune", table(kept))


def table(rows: list[dict[str, Any]]) -> str:
    """Return perplexities and divergences before and after."""
    lines = [
        "| | float | quantized | trained on | distance left | KL before | KL after | minutes |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        lines.append(
            f"| {r['model']}, {r['bits']}-bit g64, {r['way']} | {r['perplexity_float']:.3f} "
            f"| {r['perplexity_start']:.3f} | {r['perplexity']:.3f} | {r['distance_kept']:.0%} "
            f"| {r['kl_start']:.4f} | {r['kl']:.4f} | {r['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
