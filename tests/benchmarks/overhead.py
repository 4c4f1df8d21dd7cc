"""What the flow costs beside the bare core: wall and CPU seconds, first run and cached run.

    python -m tests.benchmarks.overhead [--model reference:llama] [--out docs/results]

The same recipe three times, each in a process of its own: the core alone (calibration, all blocks,
the blocks of the RTN baseline; no server, no cache, nothing written), `normtweak quantize` in a new
NORMTWEAK_HOME, and the same command again, when everything is cached. The phases of the flow are
read from its log and its event file. "start" is the interpreter and, for the flow, the embedded
server, which is also started alone, with a new database and with one that exists. "rest" is what
the bare core does not do: export, verification, evaluation, reports, registration. torch is
imported under "calibrate" where it is needed at all. The core runs before and after the flow, and
the faster counts. The blocks of both must be the same to the last bit. Writes overhead.json (with
the command) and overhead.md.
"""

import argparse
import json
import os
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.memory import Cost, fresh_process, last_line
from tests.benchmarks.results import DEFAULT_OUT, machine, write_results

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PHASES = ["start", "calibrate", "blocks", "rtn blocks", "rest", "end"]
# The first log line of the flow that belongs to a phase; "export" ends the last chain of blocks.
FIRST_LINES = {
    "calibrate": "calibrate",
    "blocks": "block 0",
    "rtn blocks": "rtn 0",
    "rest": "export",
}
COMPARED = ["calibrate", "blocks", "rtn blocks"]  # what both do
HEADER = ["", *(f"{phase} s" for phase in PHASES), "wall s", "CPU s"]
LOG_TIME = "%Y-%m-%d %H:%M:%S,%f"


def main() -> None:
    """Measure the three runs and the server, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="reference:llama", help="as model.source of a recipe")
    parser.add_argument("--text", type=Path, help="evaluation text of a model that ships with none")
    parser.add_argument("--samples", type=int, default=32, help="calibration windows")
    parser.add_argument("--length", type=int, default=128, help="tokens per window")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=64, help="0: per channel")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--bare-core", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--server-alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare_core:
        print(json.dumps(run_bare_core(json.loads(options.bare_core.read_text()))))
    elif options.server_alone:
        print(json.dumps(start_server()))
    else:
        facts = {"machine": machine()} | measure(options)
        print(write_results(options.out, "overhead", facts, HEADER, rows(facts)))


def recipe_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe that is carried out."""
    text = str(options.text.resolve()) if options.text else None
    folder = Path(options.model).is_dir()
    return {
        "name": "overhead",
        "model": {"source": str(Path(options.model).resolve()) if folder else options.model},
        "calibration": {
            "source": "generated",
            "samples": options.samples,
            "length": options.length,
        },
        "quantization": {"bits": options.bits, "group_size": options.group_size or None},
        "final_tune": {"enabled": False},
        "evaluation": {"perplexity": {"path": text, "max_tokens": 64 * options.length}},
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return what each run took, in a home that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(json.dumps(recipe_of(options)))  # JSON is YAML
        home = Path(folder) / "home"
        arguments = ["quantize", str(recipe), "--result", str(Path(folder) / "result.json")]
        before = bare_run(recipe)
        first, first_moments = timed("flows.cli", arguments, {"NORMTWEAK_HOME": str(home)})
        result = json.loads((Path(folder) / "result.json").read_text())
        first_moments |= moments_of(home)
        cached, cached_moments = timed("flows.cli", arguments, {"NORMTWEAK_HOME": str(home)})
        cached_moments |= moments_of(home)
        after = bare_run(recipe)
        servers = {}
        for name, server_home in (("new", Path(folder) / "other"), ("existing", home)):
            environment = {"NORMTWEAK_HOME": str(server_home)}
            cost = fresh_process("tests.benchmarks.overhead", ["--server-alone"], environment)
            servers[name] = last_line(cost)
        again = json.loads((Path(folder) / "result.json").read_text())["cached"]
    return {
        "bare": min(before, after, key=lambda run: run["seconds"]),
        "first": summary(first, first_moments),
        "cached": summary(cached, cached_moments),
        "server_alone_seconds": servers,
        "same_blocks": before["drifts"] == [block["error_after"] for block in result["blocks"]],
        "everything_cached": all(again.values()),
    }


def timed(
    module: str, arguments: list[str], environment: dict[str, str]
) -> tuple[Cost, dict[str, float]]:
    """Run a module in a fresh process and return its cost, and when it began and ended."""
    began = time.time()
    cost = fresh_process(module, arguments, environment)
    return cost, {"start": began, "exit": time.time()}


def bare_run(recipe: Path) -> dict[str, Any]:
    """Return what the bare core took, and the drifts behind its blocks."""
    arguments = ["--bare-core", str(recipe)]
    cost, moments = timed("tests.benchmarks.overhead", arguments, bare_environment())
    told = last_line(cost)
    return summary(cost, moments | told["moments"]) | {"drifts": told["drifts"]}


def bare_environment() -> dict[str, str]:
    """Return the variables that make torch work as it does under the flow."""
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


def moments_of(home: Path) -> dict[str, float]:
    """Return when each phase of the newest run in this home began."""
    from tasks.engine.events import read_events

    done = [one for one in read_events(home) if one["event"] == "register"][-1]
    moments: dict[str, float] = {"end": done["time"]}
    log = max((home / "logs").glob("*-quantize-*.log"), key=lambda path: path.stat().st_mtime_ns)
    for line in log.read_text(encoding="utf-8").splitlines():
        date, clock, _, _, message = [*line.split(" ", 4), "", "", "", ""][:5]
        for phase, first in FIRST_LINES.items():
            if message.removesuffix(": cached") == first and phase not in moments:
                moments[phase] = datetime.strptime(f"{date} {clock}", LOG_TIME).timestamp()
    return moments


def summary(cost: Cost, moments: dict[str, float]) -> dict[str, Any]:
    """Return seconds by phase, and of the whole process."""
    times = [moments[phase] for phase in PHASES] + [moments["exit"]]
    phases = {phase: times[i + 1] - times[i] for i, phase in enumerate(PHASES)}
    return {"phases": phases, "seconds": cost.seconds, "cpu_seconds": cost.cpu_seconds}


def run_bare_core(recipe: dict[str, Any]) -> dict[str, Any]:
    """Do the recipe's calibration and blocks; return when each phase began, and the drifts."""
    moments = {"calibrate": time.time()}
    from normtweak_core.export.config import ExportConfig
    from normtweak_core.export.float_type import resolve_export_dtype
    from normtweak_core.model.config import ModelConfig
    from normtweak_core.model.source import resolve_source
    from normtweak_core.quantization.config import QuantizationConfig
    from normtweak_core.tweak.config import NormTweakConfig

    folder = resolve_source(ModelConfig(**recipe["model"])).path
    input_ids = calibration_windows(folder, recipe["calibration"])
    dtype = resolve_export_dtype(ExportConfig(), folder)
    quantization = QuantizationConfig(**recipe["quantization"])
    moments["blocks"] = time.time()
    drifts = quantize_all(folder, input_ids, quantization, NormTweakConfig(), dtype)
    moments["rtn blocks"] = time.time()
    rtn = recipe["quantization"] | {"method": "rtn", "propagation": {"alpha": 0}}
    quantize_all(
        folder, input_ids, QuantizationConfig(**rtn), NormTweakConfig(enabled=False), dtype
    )
    moments["rest"] = moments["end"] = time.time()
    return {"moments": moments, "drifts": drifts}


def calibration_windows(folder: Path, settings: dict[str, Any]) -> "Tensor":
    """Return calibration windows, judged as the flow judges them."""
    import torch
    from transformers import AutoTokenizer

    from normtweak_core.calibration.config import CalibrationConfig
    from normtweak_core.calibration.quality import quality_report, window_nll
    from normtweak_core.calibration.sets import build_calibration_set
    from normtweak_core.model.loading import load_causal_lm

    config = CalibrationConfig(**settings)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_causal_lm(folder, torch.float32, "cpu")
    windows = build_calibration_set(config, tokenizer, model, config.length, 0)
    nll = window_nll(model, windows.input_ids)
    quality_report(windows, tokenizer, nll.mean().item()).require_usable()
    return windows.input_ids


def quantize_all(
    folder: Path, input_ids: "Tensor", quantization: Any, tweak: Any, dtype: "torch.dtype"
) -> list[float]:
    """Quantize all blocks and return how far the quantized stream is behind each."""
    import torch

    from normtweak_core.model.streaming import StreamedModel
    from normtweak_core.quantization.block import quantize_block
    from normtweak_core.quantization.plan import BlockPlan
    from normtweak_core.quantization.walk import BlockWalk

    walk = BlockWalk(StreamedModel(folder, torch.float32, "cpu"), input_ids)
    streams, drifts = walk.start(), []
    for index in range(walk.num_blocks):
        plan = BlockPlan(index, walk.num_blocks, quantization, tweak, dtype)
        done = quantize_block(walk.load(index), streams, walk.runner(index), plan)
        streams = done.streams
        drifts.append(done.report.drift_tweaked)
    return drifts


def start_server() -> float:
    """Return the seconds until an embedded server answers."""
    from tasks.engine.environment import prepare_environment
    from tasks.server.api import EmbeddedServer

    server = EmbeddedServer(prepare_environment())
    began = time.monotonic()
    server.start()
    try:
        server.wait()
        return time.monotonic() - began
    finally:
        server.stop()


def rows(facts: dict[str, Any]) -> list[list[Any]]:
    """Return the table: a row a run, the first over the bare core, and the server alone."""
    titles = {"bare": "bare core", "first": "flow, first run", "cached": "flow, cached"}
    found = [
        [title, *facts[run]["phases"].values(), facts[run]["seconds"], facts[run]["cpu_seconds"]]
        for run, title in titles.items()
    ]
    ratios = [
        found[1][i] / found[0][i] if name in COMPARED or i > len(PHASES) else ""
        for i, name in enumerate(["", *PHASES, "wall", "cpu"])
    ]
    ratios[0] = "flow, first run / bare core"
    servers = [
        [f"server alone, {name} database", seconds, *[""] * (len(HEADER) - 2)]
        for name, seconds in facts["server_alone_seconds"].items()
    ]
    return [*found, ratios, *servers]


if __name__ == "__main__":
    main()
