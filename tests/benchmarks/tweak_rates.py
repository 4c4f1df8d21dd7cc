"""Norm tweaking by loss and learning rate: held-out loss, held-out distance, and perplexity.

    python -m tests.benchmarks.tweak_rates [--model llama] [--bits 2] [--out docs/results]

Rollback is off, so that a row shows what a tweak does, not what the rule makes of it; the column
"kept" counts the blocks that the rule would have kept. Runs on the bare core, no engine.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.calibration.sets import build_calibration_set
from normtweak_core.calibration.text import cut_windows, read_documents
from normtweak_core.evaluate.divergence import perplexity
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.source import reference_folder
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.model.structure import find_linears, set_linear_weight
from normtweak_core.quantize.block import BlockPlan, quantize_block
from normtweak_core.quantize.config import QuantizationConfig
from normtweak_core.quantize.walk import BlockWalk
from normtweak_core.tweak.config import NormTweakConfig

SAMPLES, LENGTH, EVALUATED_WINDOWS = 64, 256, 128
RATES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3)


def main() -> None:
    """Run all losses and rates and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llama")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--losses", nargs="+", default=["channel", "mse"])
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parents[2] / "docs/results"
    )
    options = parser.parse_args()
    folder = reference_folder(options.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_causal_lm(folder, torch.float32, "cpu")
    config = CalibrationConfig(samples=SAMPLES, length=LENGTH)
    windows = build_calibration_set(config, tokenizer, model, LENGTH, 0).input_ids
    held_out = cut_windows(read_documents(folder / "held-out.jsonl"), tokenizer, LENGTH)
    text = held_out[:EVALUATED_WINDOWS]
    rows = [{"loss": "none", **measure(folder, windows, text, options.bits, None)}]
    for loss in options.losses:
        for rate in options.rates:
            tweak = NormTweakConfig(loss=loss, lr=rate, rollback=False)
            row = {"loss": loss, "lr": rate, **measure(folder, windows, text, options.bits, tweak)}
            rows.append(row)
            write(options, rows, perplexity(model, text).perplexity.mean)


def measure(
    folder: Path,
    windows: torch.Tensor,
    text: torch.Tensor,
    bits: int,
    tweak: NormTweakConfig | None,
) -> dict[str, Any]:
    """Return what one setting does to the held-out windows of each block, and to perplexity."""
    quantization = QuantizationConfig(bits=bits)
    tweak = tweak or NormTweakConfig(enabled=False)
    streamed = StreamedModel(folder, torch.float32, "cpu")
    walk, model = BlockWalk(streamed, windows), load_causal_lm(folder, torch.float32, "cpu")
    streams, reports = walk.start(), []
    for index in range(walk.num_blocks):
        plan = BlockPlan(index, walk.num_blocks, quantization, tweak, torch.float16)
        done = quantize_block(walk.load(index), streams, walk.runner(index), plan)
        streams = done.streams
        block = model.get_submodule(streamed.block_prefix(index))
        for name, weight in done.layers.items():
            set_linear_weight(find_linears(block)[name], weight.dequantize())
        for name, master in done.norms.items():
            block.get_parameter(name).data = master.half().float()
        if done.report.tweak:
            reports.append(done.report.tweak)
    return {
        "perplexity": perplexity(model, text).perplexity.mean,
        "blocks": [report.model_dump() for report in reports],
    }


def write(options: argparse.Namespace, rows: list[dict[str, Any]], float_perplexity: float) -> None:
    """Write what is known so far as JSON and as a table."""
    name = f"tweak-rates-{options.model}-w{options.bits}"
    command = "python -m " + " ".join(["tests.benchmarks.tweak_rates", *sys.argv[1:]])
    record = {"command": command, "perplexity_float": float_perplexity, "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [
        "| loss | lr | held-out loss, last block | held-out distance, last block | kept | "
        "perplexity |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        blocks = row["blocks"]
        if not blocks:
            lines.append(f"| no tweak | | | | | {row['perplexity']:.3f} |")
            continue
        last = blocks[-1]
        kept = sum(
            b["held_out_after"] < b["held_out_before"]
            and b["distance_after"] <= b["distance_before"]
            for b in blocks
        )
        lines.append(
            f"| {row['loss']} | {row['lr']:g} | {last['held_out_before']:.4f} -> "
            f"{last['held_out_after']:.4f} | {last['distance_before']:.4f} -> "
            f"{last['distance_after']:.4f} | {kept} of {len(blocks)} | {row['perplexity']:.3f} |"
        )
    assert math.isfinite(float_perplexity)
    (options.out / f"{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
