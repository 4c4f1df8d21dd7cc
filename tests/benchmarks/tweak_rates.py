"""Norm tweaking by loss and learning rate: held-out loss, held-out distance, and perplexity.

    python -m tests.benchmarks.tweak_rates [--model llama] [--bits 2] [--seeds 3]

Quantizing the same model from another calibration set changes its perplexity too, by about as much
as a tweak does. So each setting is run with several seeds of the calibration set, and what counts
is the change against no tweak with the same seed, with its standard error over seeds.

Rollback is off unless a row says "with rollback", so that a row shows what a tweak does, not what
the rule makes of it; "would keep" counts the blocks whose whole change passes the rule. Runs on
the bare core, no engine.
"""

import argparse
import math
import statistics
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
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.tweak.config import NormTweakConfig
from normtweak_core.tweak.tweak import HeldOut
from tests.benchmarks.chain import quantized_model
from tests.benchmarks.results import DEFAULT_OUT, machine, write_results

SAMPLES, LENGTH, EVALUATED_WINDOWS = 64, 256, 128
RATES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3)
OFF = NormTweakConfig(enabled=False)


def main() -> None:
    """Run all losses and rates with all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llama")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--losses", nargs="+", default=["channel", "mse"])
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()
    study = Study(options.model, options.bits)
    settings = {"no tweak": OFF}
    for loss in options.losses:
        for rate in options.rates:
            settings[f"{loss}, lr {rate:g}"] = NormTweakConfig(loss=loss, lr=rate, rollback=False)
        settings[f"{loss}, lr 0.001, with rollback"] = NormTweakConfig(loss=loss)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in settings}
    for seed in range(options.seeds):
        windows = study.calibration_windows(seed)
        for name, tweak in settings.items():
            runs[name].append(study.measure(windows, tweak))
            write(options, runs, study.float_perplexity)


class Study:
    """A reference model, its evaluation text, and what a setting does to both."""

    def __init__(self, name: str, bits: int):
        self.folder = reference_folder(name)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.model = load_causal_lm(self.folder, torch.float32, "cpu")
        self.quantization = QuantizationConfig(bits=bits)
        documents = read_documents(self.folder / "held-out.jsonl")
        held_out = cut_windows(documents, self.tokenizer, LENGTH)
        spread = torch.linspace(0, len(held_out) - 1, EVALUATED_WINDOWS).long()
        self.text = held_out[spread]
        self.float_perplexity = perplexity(self.model, self.text).perplexity.mean

    def calibration_windows(self, seed: int) -> torch.Tensor:
        """Return windows the model has written itself."""
        config = CalibrationConfig(samples=SAMPLES, length=LENGTH)
        made = build_calibration_set(config, self.tokenizer, self.model, LENGTH, seed)
        return made.input_ids

    def measure(self, windows: torch.Tensor, tweak: NormTweakConfig) -> dict[str, Any]:
        """Return what one setting does to the held-out windows of each block, and to perplexity."""
        model, blocks = quantized_model(self.folder, windows, self.quantization, tweak)
        reports = [block.tweak.model_dump() for block in blocks if block.tweak]
        return {"perplexity": perplexity(model, self.text).perplexity.mean, "blocks": reports}


def write(
    options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]], float_perplexity: float
) -> None:
    """Write what is known so far as JSON and as a table."""
    baseline = [run["perplexity"] for run in runs["no tweak"]]
    rows = []
    for name, found in runs.items():
        if not found:
            continue
        changes = [
            100 * (run["perplexity"] / none - 1) for run, none in zip(found, baseline, strict=False)
        ]
        mean = statistics.mean(run["perplexity"] for run in found)
        error = statistics.stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else math.nan
        change = "" if name == "no tweak" else f"{statistics.mean(changes):+.2f} ± {error:.2f} %"
        rows.append([name, *_last_block(found[0]["blocks"]), _kept(found), f"{mean:.3f}", change])
    header = [
        "tweak",
        "held-out loss, last block",
        "held-out distance, last block",
        "would keep",
        "perplexity",
        "against no tweak",
    ]
    name = f"tweak_rates-{options.model}-w{options.bits}"
    facts = {"seeds": options.seeds, "perplexity_float": float_perplexity, "runs": runs}
    write_results(options.out, name, machine() | facts, header, rows)


def _last_block(blocks: list[dict[str, Any]]) -> list[str]:
    if not blocks:
        return ["", ""]
    last = blocks[-1]
    return [
        f"{last[f'{what}_before']:.4f} -> {last[f'{what}_after']:.4f}"
        for what in ("held_out", "distance")
    ]


def _kept(runs: list[dict[str, Any]]) -> str:
    blocks = [block for run in runs for block in run["blocks"]]
    kept = sum(_at(block, "after").better_than(_at(block, "before")) for block in blocks)
    return f"{kept} of {len(blocks)}" if blocks else ""


def _at(block: dict[str, Any], when: str) -> HeldOut:
    return HeldOut(block[f"held_out_{when}"], block[f"distance_{when}"])


if __name__ == "__main__":
    main()
