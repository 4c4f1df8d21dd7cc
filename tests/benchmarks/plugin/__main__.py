"""What norm tweak and final tune bring on codes that are there already, ours and others'.

    python -m tests.benchmarks.plugin [--models llama neox] [--bits 2 4] [--seeds 0 1 2]

Each export is made from windows that the model has written with a seed, and trained on the same.
Judged are the divergence from the float model on windows it wrote with another seed, and the
perplexity of its held-out text. Runs are kept in the work folder; the same command goes on.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.calibration.documents import read_documents
from normtweak_core.calibration.sets import build_calibration_set
from normtweak_core.calibration.text import cut_windows
from normtweak_core.evaluate.divergence import compare, perplexity
from normtweak_core.evaluate.text import HELD_OUT_TEXT
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.foreign.base import BaseWeights
from normtweak_core.export.writer import write_export
from normtweak_core.finetune.config import BlockTrainingConfig
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.source import reference_folder
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.quantization.block import quantize_block
from normtweak_core.quantization.config import PropagationConfig, QuantizationConfig
from normtweak_core.quantization.dense_model import dense_model, put_scales
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.tweak.config import FinalTuneConfig, NormTweakConfig
from normtweak_core.tweak.final import TuningWindows, final_tune, put_tuned, walked_targets
from tests.benchmarks.plugin.exports import Job, make
from tests.benchmarks.results import DEFAULT_OUT, machine, table

GROUP, JUDGE_SEED = 64, 1000
SAMPLES, LENGTH = 16, 256  # that codes are made from and norms are trained on
JUDGED, HELD_OUT = 16, 32  # windows
TUNE_STEPS, AUTOROUND_STEPS = 80, 20
OURS = {"RTN": "rtn", "GPTQ without propagation": "gptq"}
GROUPED = {"group_size": GROUP, "sym": False}
STAGES = ("before", "norm tweak", "final tune: norms", "final tune: norms, scales")
DTYPES = torch.float32, torch.float16


def others(bits: int) -> dict[str, tuple[str, dict[str, Any], str]]:
    """Return tool, settings and format of the exports of other tools."""
    weights = {"num_bits": bits, "type": "int", "symmetric": False, "strategy": "group"}
    scheme = {"targets": ["Linear"], "weights": weights | {"group_size": GROUP}}
    gptq = {"bits": bits, "format": "gptq_v2", "desc_act": False, "act_group_aware": True}
    return {
        "GPTQModel": ("gptqmodel", gptq | GROUPED, ""),
        "AutoRound": (
            "autoround",
            {"bits": bits, "iters": AUTOROUND_STEPS, "amp": False} | GROUPED,
            "auto_round",
        ),
        "llm-compressor": ("llm-compressor", {"config_groups": {"group_0": scheme}}, ""),
    }


def chain(
    folder: Path,
    windows: Tensor,
    quantization: QuantizationConfig,
    tweak: NormTweakConfig,
    base: BaseWeights | None,
) -> tuple[dict[str, Any], dict[str, Tensor], list[bool]]:
    """Return linears, tweaked norms, and whether the tweak of each block was kept."""
    streamed = StreamedModel(folder, torch.float32, "cpu")
    walk = BlockWalk(streamed, windows, base, folder)
    streams, layers, norms, kept = walk.start(), {}, {}, []
    for index in range(walk.num_blocks):
        off = BlockTrainingConfig(enabled=False)
        plan = BlockPlan(index, walk.num_blocks, quantization, tweak, torch.float16, off)
        block, run = walk.load(index), walk.runner(index)
        done = quantize_block(block, streams, run, plan, given=walk.given(index))
        streams, prefix = done.streams, streamed.block_prefix(index)
        layers |= {f"{prefix}.{name}": weight for name, weight in done.layers.items()}
        norms |= {f"{prefix}.{name}": master for name, master in done.norms.items()}
        kept.append(done.report.tweak is not None and done.report.tweak.accepted)
    return layers, norms, kept


class Study:
    """One model: its float self, and what is made of it."""

    def __init__(self, model: str, work: Path):
        self.name, self.work, self.folder = model, work, reference_folder(model)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.model = load_causal_lm(self.folder, torch.float32, "cpu")
        text = read_documents(self.folder / HELD_OUT_TEXT)
        self.held_out = cut_windows(text, self.tokenizer, LENGTH)[:HELD_OUT]
        self.float_perplexity = perplexity(self.model, self.held_out).perplexity.mean

    def windows(self, seed: int) -> Tensor:
        """Return windows that the model has written with a seed."""
        file = self.work / f"{self.name}-{seed}.safetensors"
        if not file.is_file():
            config = CalibrationConfig(samples=SAMPLES, length=LENGTH)
            made = build_calibration_set(config, self.tokenizer, self.model, LENGTH, seed)
            save_file({"input_ids": made.input_ids.contiguous()}, file)
        return load_file(file)["input_ids"]

    def exports(self, bits: int, seed: int) -> dict[str, Path]:
        """Return the export of each way to make codes."""
        windows = self.windows(seed)
        place = self.work / f"{self.name}-w{bits}-s{seed}"
        place.mkdir(parents=True, exist_ok=True)
        for name, method in OURS.items():
            if not (place / name).is_dir():
                grid = QuantizationConfig(
                    method=method,
                    bits=bits,
                    group_size=GROUP,
                    propagation=PropagationConfig(alpha=0),
                )
                off = NormTweakConfig(enabled=False)
                layers, _, _ = chain(self.folder, windows, grid, off, None)
                config = ExportConfig(dtype="float16")
                write_export(place / name, self.folder, layers, {}, config, dtype=DTYPES[1])
        tokens = place / "tokens.safetensors"
        save_file({"input_ids": windows.contiguous()}, tokens)
        for name, (tool, settings, form) in others(bits).items():
            job = Job(
                tool, str(self.folder), str(tokens), str(place / name), settings, form, read=False
            )
            make([job])
        return {name: place / name for name in (*OURS, *others(bits))}

    def judged(self, model: PreTrainedModel) -> dict[str, float]:
        """Return divergence and perplexity of a model."""
        windows = self.windows(JUDGE_SEED)[:JUDGED]
        return {
            "kl": compare(model, self.model, windows).kl.mean,
            "perplexity": perplexity(model, self.held_out).perplexity.mean,
        }

    def measured(self, export: Path, seed: int) -> dict[str, Any]:
        """Return what each stage makes of an export."""
        base, windows = BaseWeights(export.resolve(), self.folder), self.windows(seed)
        grid = QuantizationConfig()

        def dense(layers: Mapping[str, Any], norms: Mapping[str, Tensor]) -> PreTrainedModel:
            return dense_model(self.folder, layers, norms, *DTYPES, "cpu", base.others)

        layers, norms, kept = chain(self.folder, windows, grid, NormTweakConfig(), base)
        found = {"before": self.judged(dense(layers, {}))}
        found["norm tweak"] = self.judged(dense(layers, norms))
        tuned_on = TuningWindows.of(windows)
        expected = walked_targets(StreamedModel(self.folder, torch.float32, "cpu"), tuned_on)
        for stage, scales in ((STAGES[2], False), (STAGES[3], True)):
            config, model = FinalTuneConfig(steps=TUNE_STEPS, scales=scales), dense(layers, norms)
            if scales:
                put_scales(model, layers, DTYPES[1])
            args = expected, tuned_on, config, norms, DTYPES[1], seed
            _, trained = final_tune(model, *args)
            put_tuned(model, trained, DTYPES[1])
            found[stage] = self.judged(model)
        return {"stages": found, "kept": kept, "perplexity_float": self.float_perplexity}


def main() -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["llama", "neox"])
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path(".study/plugin"))
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = options.work / "runs.jsonl"
    options.work.mkdir(parents=True, exist_ok=True)
    runs = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    studies: dict[str, Study] = {}
    for seed in options.seeds:
        for model in options.models:
            for bits in options.bits:
                case = {"model": model, "bits": bits, "seed": seed}
                if sum(case.items() <= run.items() for run in runs) == len(OURS) + len(
                    others(bits)
                ):
                    continue
                study = studies.setdefault(model, Study(model, options.work.resolve()))
                for codes, export in study.exports(bits, seed).items():
                    key = case | {"codes": codes}
                    if not any(key.items() <= run.items() for run in runs):
                        runs.append(key | study.measured(export, seed))
                        with kept.open("a") as file:
                            file.write(json.dumps(runs[-1]) + "\n")
                        print(runs[-1], flush=True)
    facts = {"command": "python -m tests.benchmarks.plugin", "machine": machine(), "runs": runs}
    (options.out / "plugin.json").write_text(json.dumps(facts, indent=1) + "\n")
    text = rows_of(runs, "kl") + "\n" + rows_of(runs, "perplexity")
    (options.out / "plugin.md").write_text(text)
    print(text)


def rows_of(runs: list[dict[str, Any]], what: str) -> str:
    """Return a table: of each kind of codes the value before, and ratios to it with intervals."""
    rows = []
    for model, bits, codes in dict.fromkeys((r["model"], r["bits"], r["codes"]) for r in runs):
        mine = [r for r in runs if (r["model"], r["bits"], r["codes"]) == (model, bits, codes)]
        before = [r["stages"]["before"][what] for r in mine]
        cells = [
            ratio([math.log(r["stages"][stage][what] / r["stages"]["before"][what]) for r in mine])
            for stage in STAGES[1:]
        ]
        share = statistics.fmean(sum(r["kept"]) / len(r["kept"]) for r in mine)
        rows.append(
            [model, bits, codes, len(mine), f"{statistics.fmean(before):.4g}", *cells]
            + ([f"{share:.0%}"] if what == "kl" else [])
        )
    name = {"kl": "KL", "perplexity": "perplexity"}[what]
    heads = ["model", "bits", "codes", "seeds", f"{name} before", *STAGES[1:]]
    return table([*heads, *(["tweaks kept"] if what == "kl" else [])], rows)


def ratio(logs: list[float]) -> str:
    """Return the geometric mean of ratios with its 95 % interval (t of Student)."""
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return f"{math.exp(mean):.3f}"
    student = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(logs), 1.96)
    half = student * statistics.stdev(logs) / math.sqrt(len(logs))
    return f"{math.exp(mean):.3f} ({math.exp(mean - half):.3f} to {math.exp(mean + half):.3f})"


if __name__ == "__main__":
    main()
