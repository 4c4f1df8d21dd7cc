"""What should decide whether a norm tweak is kept: the block's own output, or the logits behind it.

    python -m tests.benchmarks.judge [--models llama ...] [--stories FOLDER] [--work FOLDER]

Today a tweak is kept where the recipe's loss and the distance of the block's output both fall on
held-out windows. Here the divergence of the logits is asked as well, after the float blocks that
follow, on the same windows. Two questions, each for several ways to solve a block:

* Of every block alone: how well do the three changes foretell what the tweak does to the finished
  model? That is told by its divergence on windows of another seed, once with the tweak of this
  block and once with none, later blocks solved anew.
* Of whole chains: what is left where the norms of each block are tweaked never, always, or as one
  of the two judges says? A judge takes the best of four shares of a tweak, or none of it.

No text is read that anything is evaluated on. The same command goes on where it stopped.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normtweak_core.evaluate.divergence import compare
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.quantization.block import quantize_block
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.dense_model import dense_model
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.storage import quantized_copy
from normtweak_core.quantization.streams import Streams, num_training_windows, run_stream
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.training.objective import divergence
from normtweak_core.tweak.config import NormTweakConfig
from normtweak_core.tweak.tweak import SHARES, HeldOut, held_out, tweak_norms, tweak_rate
from tests.benchmarks.quality.__main__ import JUDGE_SEED, SEEDS, Subject, ratio
from tests.benchmarks.quality.models import study_models
from tests.benchmarks.rank_correlation import correlation_within
from tests.benchmarks.results import DEFAULT_OUT, machine, table

DTYPE = torch.float16  # of the export
TWEAK = NormTweakConfig(rollback=False)
SOLVES: dict[str, dict[str, Any]] = {
    "GPTQ, 2 bits": {"bits": 2, "propagation": {"alpha": 0, "residual": 0}},
    "GPTQ, 4 bits": {"bits": 4, "propagation": {"alpha": 0, "residual": 0}},
    "with propagation, 2 bits": {"bits": 2},
    "with propagation, 4 bits": {"bits": 4},
}


@dataclass(frozen=True)
class Held:
    """What held-out windows say of a block with a share of its tweak."""

    share: float
    block: HeldOut
    divergence: float  # at the logits, nats per token


Judge = Callable[[list[Held]], float]  # the first is the block as it was


def _by_distance(tried: list[Held]) -> float:
    passed = [held for held in tried[1:] if held.block.better_than(tried[0].block)]
    return min(passed, key=lambda held: held.block.distance).share if passed else 0.0


def _by_divergence(tried: list[Held]) -> float:
    return min(tried, key=lambda held: held.divergence).share


JUDGES: dict[str, Judge] = {
    "never": lambda tried: 0.0,
    "always": lambda tried: 1.0,
    "by the block's output": _by_distance,
    "by the logits": _by_divergence,
}


class Chains:
    """A model quantized from one calibration set, again and again from some block on."""

    def __init__(self, subject: Subject, quantization: QuantizationConfig, windows: Tensor):
        self.subject, self.quantization = subject, quantization
        self.model = StreamedModel(subject.folder, torch.float32, "cpu")
        self.walk = BlockWalk(self.model, windows)
        self.training = num_training_windows(len(windows))
        with torch.inference_mode():
            self.expected = subject.model(windows[self.training :]).logits

    def run(self, judge: Judge, start: int = 0, streams: Streams | None = None) -> "Finished":
        """Quantize the blocks from ``start`` on, with what the judge keeps of their tweaks."""
        streams = streams or self.walk.start()
        finished = Finished()
        for index in range(start, self.walk.num_blocks):
            finished.before.append(Streams(streams.x_f.clone(), streams.x_q.clone()))
            streams = self._block(index, streams, judge, finished)
        return finished

    def _block(self, index: int, streams: Streams, judge: Judge, into: "Finished") -> Streams:
        count, run, block = self.walk.num_blocks, self.walk.runner(index), self.walk.load(index)
        before = streams.x_q.clone()
        off = NormTweakConfig(enabled=False)
        made = quantize_block(
            block, streams, run, BlockPlan(index, count, self.quantization, off, DTYPE)
        )
        norms, target = made.norms, made.streams.x_f
        if judge is not JUDGES["never"]:
            tweaked = quantized_copy(block, made.layers, norms, DTYPE)
            args = (before, target, self.training, run, TWEAK, tweak_rate(TWEAK, index, count))
            _, masters = tweak_norms(tweaked, *args, DTYPE)
            shared = {
                share: norms | _shares_of(block, norms, masters, share) for share in (0.0, *SHARES)
            }
            tried = [
                self._held(index, quantized_copy(block, made.layers, n, DTYPE), before, target, s)
                for s, n in shared.items()
            ]
            into.tried.append(tried)
            norms = shared[judge(tried)]
            final = quantized_copy(block, made.layers, norms, DTYPE)
            run_stream(final, before, run, made.streams.x_q)
        prefix = self.model.block_prefix(index)
        into.layers |= {f"{prefix}.{name}": weight for name, weight in made.layers.items()}
        into.norms |= {f"{prefix}.{name}": master for name, master in norms.items()}
        return made.streams

    @torch.inference_mode()
    def _held(
        self, index: int, block: torch.nn.Module, x_q: Tensor, target: Tensor, share: float
    ) -> Held:
        run = self.walk.runner(index)
        own = held_out(block, x_q, target, self.training, run, TWEAK.loss)
        hidden = run(block, x_q[self.training :])
        for later in range(index + 1, self.walk.num_blocks):
            hidden = self.walk.runner(later)(self.walk.load(later), hidden)
        kl = divergence(self.expected, self.model.head(hidden)).item()
        return Held(share, own, kl)

    def left(self, finished: "Finished", *earlier: "Finished") -> float:
        """Return the divergence of the finished model on windows of the judge's seed."""
        layers, norms = {}, {}
        for part in (*earlier, finished):
            layers, norms = layers | part.layers, norms | part.norms
        model = dense_model(self.subject.folder, layers, norms, torch.float32, DTYPE, "cpu")
        return compare(model, self.subject.model, self.subject.windows(JUDGE_SEED)).kl.mean


class Finished:
    """What a chain has made."""

    def __init__(self) -> None:
        self.before: list[Streams] = []  # in front of each block
        self.tried: list[list[Held]] = []
        self.layers: dict[str, Any] = {}
        self.norms: dict[str, Tensor] = {}


def _shares_of(
    block: torch.nn.Module, norms: dict[str, Tensor], masters: dict[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Return norms that have gone a share of their way, in float32."""
    found = {}
    for name, master in masters.items():
        start = norms.get(name, block.get_parameter(name).detach().float())
        found[name] = start + share * (master - start)
    return found


def measured(subject: Subject, solve: str, group_size: int | None, seed: int) -> dict[str, Any]:
    """Return both answers for one model, one solve and one calibration set."""
    settings = QuantizationConfig.model_validate(SOLVES[solve] | {"group_size": group_size})
    chains = Chains(subject, settings, subject.windows(seed))
    none = chains.run(JUDGES["never"])
    kl = {"never": chains.left(none)}
    for name in ("always", "by the block's output", "by the logits"):
        kl[name] = chains.left(chains.run(JUDGES[name]))
    blocks = []
    for index, before in enumerate(none.before):
        first = _First()
        one = chains.run(first, index, Streams(before.x_f.clone(), before.x_q.clone()))
        was, now = first.tried[0], first.tried[1]
        blocks.append(
            {
                "loss": now.block.loss / was.block.loss - 1,
                "distance": now.block.distance / was.block.distance - 1,
                "logits": now.divergence / was.divergence - 1,
                "finished": chains.left(one, none) / kl["never"] - 1,
            }
        )
    return {"kl": kl, "blocks": blocks}


class _First:
    """Keeps the whole tweak of the first block that it is asked of, and no other."""

    def __init__(self) -> None:
        self.tried: list[Held] = []

    def __call__(self, tried: list[Held]) -> float:
        if self.tried:
            return 0.0
        self.tried = tried
        return 1.0


def main() -> None:
    """Run what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--stories", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--solves", nargs="+", default=list(SOLVES), choices=list(SOLVES))
    parser.add_argument("--work", type=Path, default=Path(".study"))
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()
    folders = study_models(options.work, options.stories)
    path = options.out / "judge.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    for model in options.models or folders:
        subject = Subject(folders[model])
        for seed in options.seeds:
            for solve in options.solves:
                key = {"model": model, "solve": solve, "seed": seed}
                if any(key.items() <= run.items() for run in runs):
                    continue
                group_size = None if model == "stories260K" else 64
                runs.append(key | measured(subject, solve, group_size, seed))
                print(json.dumps(runs[-1]), flush=True)
                path.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")
    (options.out / "judge.md").write_text("\n".join(tables(runs)))
    print((options.out / "judge.md").read_text())


def tables(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Return what chains leave by judge, and how well each change foretells that of the model."""
    rows = []
    for solve in SOLVES:
        of = [run["kl"] for run in runs if run["solve"] == solve]
        if of:
            logs = {n: [math.log(kl[n] / kl["never"]) for kl in of] for n in JUDGES}
            rows.append([solve, len(of), *(ratio(logs[name]) for name in list(JUDGES)[1:])])
    yield table(["KL over no tweak", "runs", *list(JUDGES)[1:]], rows)
    rows = []
    for solve in SOLVES:
        points = [
            (f"{run['model']} {run['seed']}", block)
            for run in runs
            if run["solve"] == solve
            for block in run["blocks"]
        ]
        if not points:
            continue
        groups = [group for group, _ in points]
        truth = [block["finished"] for _, block in points]
        row = [solve, len(points), f"{statistics.fmean(t < 0 for t in truth):.2f}"]
        for change in ("loss", "distance", "logits"):
            said = [block[change] for _, block in points]
            right = statistics.fmean((s < 0) == (t < 0) for s, t in zip(said, truth, strict=True))
            row.append(f"{right:.2f}, {correlation_within(said, truth, groups)}")
        rows.append(row)
    yield table(
        ["a block's tweak alone", "blocks", "helped", "loss says so", "distance", "logits"], rows
    )


if __name__ == "__main__":
    main()
