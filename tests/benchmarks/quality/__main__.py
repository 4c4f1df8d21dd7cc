"""Which settings give the best quantized model, chosen without any evaluation text.

    python -m tests.benchmarks.quality [--parts grid ...] [--stories FOLDER] [--work FOLDER]

Each setting quantizes each model at each width and group size from three calibration sets that the
model has written itself. It is judged by its divergence from the float model on windows that the
model wrote with another seed: no text is read that anything is evaluated on. What counts is the
ratio to the first setting of its part with the same calibration set, as a mean over all that a row
holds with its 95 % interval. Runs are kept in the work folder and, when a command ends, with the
results; the same command goes on from both.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.calibration.sets import build_calibration_set
from normtweak_core.evaluate.divergence import compare
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.quantization.config import QuantizationConfig
from tests.benchmarks.chain import quantized_model
from tests.benchmarks.quality.models import study_models
from tests.benchmarks.quality.settings import PARTS, Setting
from tests.benchmarks.results import DEFAULT_OUT, machine, table

SAMPLES, LENGTH = 32, 256
JUDGE_SEED, SEEDS = 1000, (0, 1, 2)


@dataclass(frozen=True)
class Case:
    """What is quantized, and how."""

    model: str
    group_size: int | None
    bits: int
    kind: str  # asymmetric, symmetric or ternary
    seed: int

    def quantization(self) -> dict[str, Any]:
        """The keys of a recipe."""
        keys: dict[str, Any] = {"bits": self.bits, "group_size": self.group_size}
        keys["symmetric"] = self.kind != "asymmetric"
        return keys | ({"levels": "ternary"} if self.kind == "ternary" else {})


class Subject:
    """A float model with the windows it has written."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = load_causal_lm(folder, torch.float32, "cpu")
        self._windows: dict[int, torch.Tensor] = {}

    def windows(self, seed: int) -> torch.Tensor:
        """Return windows of one seed."""
        if seed not in self._windows:
            config = CalibrationConfig(samples=SAMPLES, length=LENGTH)
            made = build_calibration_set(config, self.tokenizer, self.model, LENGTH, seed)
            self._windows[seed] = made.input_ids
        return self._windows[seed]

    def divergence(
        self, seed: int, quantization: QuantizationConfig, setting: Setting
    ) -> dict[str, float]:
        """Return what a setting leaves of the model, in nats per token, and its CPU seconds."""
        windows, began = self.windows(seed), time.process_time()
        with setting.applied():
            after = setting.afterwards()
            model, _ = quantized_model(self.folder, windows, quantization, *after, seed)
        seconds = time.process_time() - began
        found = compare(model, self.model, self.windows(JUDGE_SEED))
        return {
            "kl": found.kl.mean,
            "nll_difference": found.nll_difference.mean,
            "seconds": seconds,
        }


def cases(part: str, models: list[str], seeds: tuple[int, ...]) -> Iterator[Case]:
    """Yield all cases of a part."""
    for model in models:
        for group_size in (None,) if model == "stories260K" else PARTS[part].group_sizes:
            for kind, widths in PARTS[part].kinds.items():
                for bits in widths:
                    for seed in seeds:
                        yield Case(model, group_size, bits, kind, seed)


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--stories", type=Path)
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--work", type=Path, default=Path(".study"))
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()
    folders = study_models(options.work, options.stories)
    chosen = options.models or list(folders)
    kept = Kept(options.work / "quality.jsonl", options.out / "quality.json")
    for part in options.parts:
        for model in chosen:
            subject = Subject(folders[model])
            for case in cases(part, [model], tuple(options.seeds)):
                for setting in PARTS[part].settings:
                    kept.run(subject, case, part, setting)
    facts = {"machine": machine(), "runs": kept.runs}
    (options.out / "quality.json").write_text(json.dumps(facts, indent=1) + "\n")
    told = [part for part in PARTS if any(run["part"] == part for run in kept.runs)]
    text = "\n".join(f"**{part}**\n\n{rows_of(part, kept.runs)}" for part in told)
    (options.out / "quality.md").write_text(text)
    print(text)


class Kept:
    """Runs that are done: those of the results, and of a file that a stopped study goes on from."""

    def __init__(self, path: Path, results: Path):
        self.path = path
        self.runs = json.loads(results.read_text())["runs"] if results.exists() else []
        lines = path.read_text().splitlines() if path.exists() else []
        self.runs += [run for run in map(json.loads, lines) if run not in self.runs]

    def run(self, subject: Subject, case: Case, part: str, setting: Setting) -> None:
        """Measure a setting, unless it is kept."""
        key = case.__dict__ | {"part": part, "setting": setting.name}
        if any(key.items() <= run.items() for run in self.runs):
            return
        quantization = QuantizationConfig.model_validate(case.quantization() | setting.keys)
        found = subject.divergence(case.seed, quantization, setting)
        self.runs.append(key | found)
        with self.path.open("a") as file:
            file.write(json.dumps(self.runs[-1]) + "\n")
        print(self.runs[-1], flush=True)


def rows_of(part: str, runs: list[dict[str, Any]]) -> str:
    """Return the table of a part: a row a setting, a column for each kind, width and group size."""
    base, found = PARTS[part].settings[0].name, {}
    for run in runs:
        if run["part"] == part:
            column = (run["kind"], run["bits"], run["group_size"] or "rows")
            found[column, run["model"], run["seed"], run["setting"]] = run["kl"]
    columns = sorted({column for column, *_ in found}, key=str)
    rows = []
    for setting in PARTS[part].settings:
        cells = [
            ratio(
                [
                    math.log(kl / found[where, model, seed, base])
                    for (where, model, seed, name), kl in found.items()
                    if (where, name) == (column, setting.name)
                ]
            )
            for column in columns
        ]
        rows.append([setting.name, *cells])
    titles = [f"{kind}, {bits} bits, {f'g{g}' if g != 'rows' else g}" for kind, bits, g in columns]
    return table([f"KL over {base}", *titles], rows)


def ratio(logs: list[float]) -> str:
    if not logs:
        return "-"
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return f"{math.exp(mean):.3f}"
    half = 1.96 * statistics.stdev(logs) / math.sqrt(len(logs))
    return f"{math.exp(mean):.3f} ± {math.exp(mean) * half:.3f}"


if __name__ == "__main__":
    main()
