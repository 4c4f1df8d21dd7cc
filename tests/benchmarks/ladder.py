"""The whole pipeline on random Llamas of growing width and depth, beside what `plan` says of them.

    python -m tests.benchmarks.ladder [--rungs 60M-2 60M-4 ...] [--again] [--work DIR]

Every rung is `normtweak quantize` in a process of its own, in a state root of its own, with one
thread; what it takes is watched from outside (`tests.benchmarks.watched`). Of `plan` there are the
numbers before the run, for the same recipe. Results are kept rung by rung in ladder.json: a rung
that is there is not run again. Weights are random and stored in bfloat16, few short windows are
taken, so that the numbers are about memory, disk and time alone.
"""

import argparse
import json
import os
import random
import resource
import shutil
import string
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.results import DEFAULT_OUT, REPOSITORY, machine, table
from tests.benchmarks.watched import Watched, watch

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
WORDS, CHARACTERS = 2000, 60_000
MIB = 1 << 20
# Widths of models that are in use: hidden, intermediate, heads, heads of keys, vocabulary, blocks.
SHAPES = {
    "60M": (512, 1408, 8, 8, 32_000, 8),
    "160M": (768, 3072, 12, 12, 32_000, 12),
    "410M": (1024, 3328, 16, 16, 32_000, 24),
    "1.1B": (2048, 5632, 32, 4, 32_000, 22),
    "1.5B": (2048, 5632, 32, 4, 32_000, 32),
}
STAGES = ("calibrate", "blocks", "baseline", "final tune", "export", "verify", "evaluate")


@dataclass(frozen=True)
class Rung:
    """A shape, a depth and what is asked for in the recipe beside the usual."""

    shape: str
    blocks: int | None = None  # None: those of the shape
    values: tuple[tuple[str, Any], ...] = ()  # of the recipe, by dotted key
    cap: int = resource.RLIM_INFINITY  # bytes of data that the kernel lets the process have

    @property
    def depth(self) -> int:
        """How many blocks it has."""
        return self.blocks or SHAPES[self.shape][-1]


FEW = (("calibration.samples", 8), ("evaluation.perplexity.max_tokens", 1024))
QUICK = (*FEW, ("quantization.mse_grid", False))
CAP = 2 << 30  # bytes that `ulimit -d` and the recipe allow the process, each
CAPPED = (*QUICK, ("calibration.source", "text"), ("final_tune.enabled", False))
CAPPED += (("limits", {"memory": CAP}),)
RUNGS = {
    "60M-2": Rung("60M", 2),
    "60M-4": Rung("60M", 4),
    "60M-8": Rung("60M", 8),
    "60M-text": Rung("60M", 4, (("calibration.source", "text"), ("norm_tweak.enabled", False))),
    "160M": Rung("160M"),
    "160M-2": Rung("160M", 2, FEW),
    "410M-2": Rung("410M", 2, FEW),
    "410M": Rung("410M", None, QUICK),
    "1.1B-2": Rung("1.1B", 2, FEW),
    "1.1B": Rung("1.1B", None, (*QUICK, ("calibration.source", "text"))),
    "1.5B-2": Rung("1.5B", 2, CAPPED, CAP),
    "1.5B": Rung("1.5B", None, CAPPED, CAP),
}


def main() -> None:
    """Climb the rungs that are asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=list(RUNGS))
    parser.add_argument("--again", action="store_true", help="also what has been run before")
    parser.add_argument(
        "--replan", action="store_true", help="only what is planned, of all that ran"
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ladder")
    parser.add_argument("--plan", type=Path, metavar="RECIPE", help="print what is planned as JSON")
    options = parser.parse_args()
    if options.plan:
        print(json.dumps(planned(options.plan)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "ladder.json"
    found = json.loads(kept.read_text())["rungs"] if kept.exists() else {}
    for name in options.rungs:
        if options.replan and name in found:
            found[name]["planned"] = plan_beside(name, RUNGS[name], options.work)
        elif options.replan or (name in found and not options.again):
            continue
        else:
            found[name] = climb(name, RUNGS[name], options.work)
        ordered = {one: found[one] for one in RUNGS if one in found}
        kept.write_text(json.dumps({"rungs": ordered}, indent=1) + "\n")
        (options.out / "ladder.md").write_text(told(ordered))
        print(told({name: found[name]}), flush=True)


def climb(name: str, rung: Rung, work: Path) -> dict[str, Any]:
    """Return what was planned for a rung, and what it took.

    Raises:
        RuntimeError: The run failed.
    """
    facts = {"machine": machine(), "planned": plan_beside(name, rung, work)}
    recipe, root = work / f"{name}.json", work / "roots" / name
    shutil.rmtree(root, ignore_errors=True)
    environment = ONE_THREAD | {"NORMTWEAK_HOME": str(root)}
    command = [sys.executable, "-m", "flows.cli", "quantize", str(recipe)]

    def cap() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (rung.cap, rung.cap))

    taken: Watched = watch(command, root, environment, cwd=REPOSITORY, preexec_fn=cap)
    if taken.code:
        raise RuntimeError(f"{name} must be quantized; it ended with {taken.code}: {taken.output}")
    shutil.rmtree(root)
    return facts | {"measured": taken.facts()}


def plan_beside(name: str, rung: Rung, work: Path) -> dict[str, Any]:
    """Write the recipe of a rung, and return what a process that is asked plans for it."""
    model = made(work / "models" / f"{rung.shape}-{rung.depth}", rung)
    recipe = work / f"{name}.json"
    recipe.write_text(json.dumps(recipe_of(name, rung, model, text_file(work))))
    plan = subprocess.run(
        [sys.executable, "-m", __spec__.name, "--plan", str(recipe)],
        cwd=REPOSITORY,
        env=os.environ | ONE_THREAD | {"NORMTWEAK_HOME": str(work / "roots" / "none")},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(plan.stdout)


def planned(recipe: Path) -> dict[str, Any]:
    """Return what `normtweak plan` says of a recipe: bytes and seconds by stage."""
    from flows.commands.plan import plan_of

    return plan_of(recipe)


def made(folder: Path, rung: Rung) -> Path:
    """Return the folder of a model of random weights; it is made once."""
    if folder.exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    hidden, between, heads, key_heads, vocabulary, _ = SHAPES[rung.shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=between,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        num_hidden_layers=rung.depth,
    )
    temporary = folder.with_name(f"{folder.name}.partial")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(temporary)
    save_tokenizer(temporary, vocabulary)
    temporary.rename(folder)
    return folder


def save_tokenizer(folder: Path, size: int) -> None:
    """Write a tokenizer with as many ids as the model: bytes, then runs of two and three letters.

    With fewer ids than the model has, the text that it writes is worse than chance.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bytes_, letters = sorted(pre_tokenizers.ByteLevel.alphabet()), string.ascii_lowercase
    pairs = [(one, other) for one in letters for other in letters]
    triples = [(one + other, third) for one, other in pairs for third in letters]
    spaced = [("Ġ", "".join(triple)) for triple in triples]
    merges = [*pairs, *triples, *spaced][: size - len(bytes_)]
    names = [*bytes_, *map("".join, merges)]
    model = models.BPE(vocab={one: place for place, one in enumerate(names)}, merges=merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def text_file(work: Path) -> Path:
    """Return a text of made-up words."""
    draw, path = random.Random(0), work / "text.txt"
    words = ["".join(draw.choices("abcdeghilmnoprstu", k=draw.randint(2, 9))) for _ in range(WORDS)]
    path.write_text(" ".join(draw.choice(words) for _ in range(CHARACTERS // 6)) + "\n")
    return path


def recipe_of(name: str, rung: Rung, model: Path, text: Path) -> dict[str, Any]:
    """Return the recipe of a rung as plain data."""
    from flows.recipes.base import put

    values: dict[str, Any] = {
        "name": f"ladder-{name.replace('.', '-')}",
        "model": {"source": str(model)},
        "calibration": {"source": "generated", "samples": 16, "length": 128},
        "quantization": {"bits": 4, "group_size": 128, "symmetric": True},
        "norm_tweak": {},
        "final_tune": {"steps": 8},
        "evaluation": {"perplexity": {"path": str(text), "max_tokens": 2048}},
    }
    for key, value in rung.values:
        put(values, key, value)
    if values["calibration"]["source"] == "text":
        values["calibration"]["path"] = str(text)
    return values


def told(rungs: dict[str, Any]) -> str:
    """Return the tables: of whole runs, and of their stages."""
    header = ["rung", "blocks", "parameters", "CPU s a block"]
    header += ["peak MiB", "planned", "disk MiB", "planned", "seconds", "CPU s", "planned s"]
    rows = [_row(name, one) for name, one in rungs.items()]
    parts = [_stage_row(name, stage, one) for name, one in rungs.items() for stage in STAGES]
    stages = ["rung", "stage", "CPU s", "planned s", "peak MiB", "anonymous", "planned MiB"]
    stages += ["children MiB"]
    shown = [row for row in parts if row]
    return f"{table(header, rows)}\n{table(stages, shown)}"


def _row(name: str, rung: dict[str, Any]) -> list[Any]:
    plan, taken = rung["planned"], rung["measured"]
    stages = taken["stages"].values()
    blocks = taken["blocks"]
    return [
        name,
        plan["blocks"],
        f"{plan['parameters'] / 1e6:.0f}M",
        sum(blocks) / max(1, len(blocks)),
        max(one["resident"] for one in stages) / MIB,
        max(plan["memory"].values()) / MIB,
        taken["disk"] / MIB,
        sum(plan["disk"].values()) / MIB,
        taken["seconds"],
        sum(one["cpu_seconds"] for one in stages),
        sum(plan["seconds"].values()),
    ]


def _stage_row(name: str, stage: str, rung: dict[str, Any]) -> list[Any] | None:
    plan, cost = rung["planned"], rung["measured"]["stages"].get(stage)
    if cost is None:
        return None
    memory, seconds = (plan[one].get(stage) for one in ("memory", "seconds"))
    return [
        name,
        stage,
        cost["cpu_seconds"],
        "" if seconds is None else seconds,
        cost["resident"] / MIB,
        cost["anonymous"] / MIB,
        "" if memory is None else memory / MIB,
        cost["children"] / MIB,
    ]


if __name__ == "__main__":
    main()
