"""Mixed widths against the best mix of two widths that a person would write, at the same true bits.

    python -m tests.benchmarks.widths [--models llama ...] [--average 2.5] [--stories FOLDER]

Both are quantized alike (GPTQ with propagation, the keys of effort fast), in the layout of mixed
exports. Mixes are 2 and 3, or 2 and 4 bits: the wider one goes to whole blocks, first, last or both
ends first, or to one kind of linears in all blocks, as far as the budget reaches, and what is left
of it to further blocks. What counts is the divergence from the float model on windows that the
model wrote with another seed. All mixes run from the first calibration set; the three that are best
there, from the others too. Perplexity on a text is measured as well, and decides nothing.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from normtweak_core.calibration.documents import read_documents
from normtweak_core.calibration.text import cut_windows
from normtweak_core.effort import EFFORTS
from normtweak_core.evaluate.divergence import compare
from normtweak_core.evaluate.text import HELD_OUT_TEXT
from normtweak_core.model.source import reference_folder
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.tweak.config import NormTweakConfig
from normtweak_core.widths.allotment import allot
from normtweak_core.widths.measuring import Measuring
from normtweak_core.widths.report import Allotment, GroupCost
from normtweak_core.widths.trial import Trials, load_trials, save_trials
from tests.benchmarks.chain import quantized_model
from tests.benchmarks.quality.__main__ import JUDGE_SEED, LENGTH, SEEDS, Subject
from tests.benchmarks.results import DEFAULT_OUT, machine, table

CHOICES, BEST = (2, 3, 4), 3
TEXT_TOKENS = 16384
FORM = "auto", "float16"


def config_of(model: str, average: float) -> QuantizationConfig:
    """Return the settings of a model: groups of 64, of the smallest model whole rows."""
    prefix = "quantization."
    fast = {k.removeprefix(prefix): v for k, v in EFFORTS["fast"].items() if k.startswith(prefix)}
    bits = {"average": average, "choose_from": list(CHOICES)}
    return QuantizationConfig(bits=bits, group_size=None if model == "stories260K" else 64, **fast)


def measured_costs(
    folder: Path, windows: torch.Tensor, config: QuantizationConfig
) -> list[GroupCost]:
    """Return what every group of a model costs at each width."""

    def walk() -> BlockWalk:
        return BlockWalk(StreamedModel(folder, torch.float32, "cpu"), windows)

    with tempfile.TemporaryDirectory() as place:
        trials, count = Trials(walk(), config, torch.float16), walk().num_blocks
        for index in range(count):
            save_trials(Path(place) / str(index), trials.block(index))
        measuring = Measuring(walk(), lambda i: load_trials(Path(place) / str(i), config))
        return [cost for index in range(count) for cost in measuring.block(index)]


def mixes(found: Allotment) -> Iterator[tuple[str, Allotment]]:
    """Yield the mixes of two widths within the budget of an allotment, by their names."""
    groups = found.groups
    last = groups[-1].block
    orders = {
        "first blocks": [group.block for group in groups],
        "last blocks": [-group.block for group in groups],
        "both ends": [min(group.block, last - group.block) for group in groups],
    }
    for kind in dict.fromkeys(tuple(group.linears) for group in groups):
        order = [(tuple(group.linears) != kind, group.block) for group in groups]
        orders[" ".join(name.rpartition(".")[2] for name in kind)] = order
    budget = found.asked * sum(group.weights for group in groups)
    for wide in CHOICES[1:]:
        for name, order in orders.items():
            widths = [CHOICES[0]] * len(groups)
            taken = sum(group.stored_bits[CHOICES[0]] for group in groups)
            for place in sorted(range(len(groups)), key=order.__getitem__):
                stored = groups[place].stored_bits
                if taken + stored[wide] - stored[CHOICES[0]] <= budget:
                    taken += stored[wide] - stored[CHOICES[0]]
                    widths[place] = wide
            mixed = [
                group.model_copy(update={"width": width})
                for group, width in zip(groups, widths, strict=True)
            ]
            yield f"2/{wide}, {name}", Allotment(asked=found.asked, groups=mixed)


class Study:
    """One model at one budget."""

    def __init__(self, name: str, folder: Path, average: float, text: Path):
        self.name, self.subject = name, Subject(folder)
        windows = cut_windows(read_documents(text), self.subject.tokenizer, LENGTH)
        self.text = windows[: TEXT_TOKENS // LENGTH]
        self.config = config_of(name, average)
        self.runs: list[dict[str, Any]] = []

    def run(self, seed: int, how: str, widths: Allotment) -> float:
        """Quantize with given widths and return the divergence on windows of another seed."""
        subject, began = self.subject, time.process_time()
        own = [widths.of_block(index) for index in range(1 + widths.groups[-1].block)]
        off = NormTweakConfig(enabled=False)
        windows = subject.windows(seed)
        model, _ = quantized_model(subject.folder, windows, self.config, off, widths=own)
        kl = compare(model, subject.model, subject.windows(JUDGE_SEED)).kl.mean
        read = compare(model, subject.model, self.text)
        self.runs.append(
            {
                "model": self.name,
                "asked": widths.asked,
                "seed": seed,
                "how": how,
                "bits": widths.average,
                "widths": [group.width for group in widths.groups],
                "kl": kl,
                "perplexity_float": read.float_result.perplexity.mean,
                "perplexity": read.quantized_result.perplexity.mean,
                "seconds": time.process_time() - began,
            }
        )
        print(json.dumps(self.runs[-1]), flush=True)
        return kl

    def all(self) -> list[dict[str, Any]]:
        """Run everything."""
        best: list[str] = []
        for seed in SEEDS:
            began = time.process_time()
            costs = measured_costs(self.subject.folder, self.subject.windows(seed), self.config)
            found = allot(costs, self.config, *FORM)
            print(f"measured in {time.process_time() - began:.0f} s", found.in_words(), flush=True)
            self.run(seed, "measured", found)
            written = dict(mixes(found))
            kls = {name: self.run(seed, name, written[name]) for name in best or written}
            best = best or sorted(kls, key=kls.__getitem__)[:BEST]
        return self.runs


def rows_of(runs: list[dict[str, Any]]) -> list[list[Any]]:
    """Return a row a model and budget: the measured widths beside the best mix."""
    rows = []
    for model, asked in dict.fromkeys((run["model"], run["asked"]) for run in runs):
        means: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            if (run["model"], run["asked"]) == (model, asked):
                means.setdefault(run["how"], []).append(run)
        kls = {
            how: statistics.fmean(run["kl"] for run in found)
            for how, found in means.items()
            if len(found) == len(SEEDS)
        }
        best = min((how for how in kls if how != "measured"), key=kls.__getitem__)
        ratios = {
            key: [
                ours[key] / theirs[key]
                for ours, theirs in zip(means["measured"], means[best], strict=True)
            ]
            for key in ("kl", "perplexity")
        }
        perplexities = [
            f"{statistics.fmean(run['perplexity'] for run in means[how]):.3f}"
            for how in ("measured", best)
        ]
        rows.append(
            [
                model,
                f"{asked:g}",
                f"{means['measured'][0]['perplexity_float']:.3f}",
                best,
                f"{kls[best]:.4f}",
                f"{kls['measured']:.4f}",
                _ratio(ratios["kl"]),
                perplexities[1],
                perplexities[0],
                _ratio(ratios["perplexity"]),
            ]
        )
    return rows


def _ratio(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


HEADER = [
    *("model", "bits allowed", "float perplexity", "best mix", "its KL", "measured: KL", "ratio"),
    *("its perplexity", "measured: perplexity", "ratio"),
]


def main() -> None:
    """Run the studies asked for, and write the table of all that are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["llama", "neox"])
    parser.add_argument("--average", type=float, default=2.5)
    parser.add_argument("--stories", type=Path, help="folder of stories260K")
    parser.add_argument("--text", type=Path, help="that stories260K is read on")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()
    folders = {name: reference_folder(name) for name in ("llama", "neox")}
    folders["stories260K"] = options.stories
    kept = options.out / "widths.json"
    runs = json.loads(kept.read_text())["runs"] if kept.exists() else []
    for name in options.models:
        text = options.text if name == "stories260K" else folders[name] / HELD_OUT_TEXT
        study = Study(name, folders[name], options.average, text)
        runs = [r for r in runs if (r["model"], r["asked"]) != (name, options.average)]
        runs += study.all()
        kept.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")
    (options.out / "widths.md").write_text(table(HEADER, rows_of(runs)))
    print(table(HEADER, rows_of(runs)))


if __name__ == "__main__":
    main()
