"""Seconds per block and peak memory of quantize_block by model width.

    python -m tests.benchmarks.blocks [--widths 256 512 1024] [--out docs/results]

Random Llama blocks, each width in a process of its own. Seconds depend on the machine and its
load; what can be compared is the last columns: seconds over those of a bare forward pass of the
same float block over the same windows, taken in the same process before, between and after (wall,
and CPU, which suffers less from a load), and memory over the bytes of the block's weights. Writes
blocks.json (with the command) and blocks.md.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.engine.environment import peak_rss_bytes
from tests.benchmarks.memory import fresh_process, last_line, reset_peak, rss_bytes
from tests.benchmarks.results import DEFAULT_OUT, machine, write_results

if TYPE_CHECKING:
    from normtweak_core.quantization.streams import Streams
    from normtweak_core.quantization.walk import BlockWalk

HEADER = [
    "hidden size",
    "weights",
    "forward s",
    "solve s",
    "tweak s",
    "block s",
    "solve / forward",
    "tweak / forward",
    "block / forward",
    "same, CPU",
    "peak MiB",
    "above start MiB",
    "above start / weight bytes",
]
PARTS = {"solve": "tweak", "tweak": "finish"}  # what is noted as a part begins, and as it ends
HEAD_SIZE = 64
MEBI = 2**20


def main() -> None:
    """Measure every width in a fresh process and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", nargs="+", type=int, default=[256, 512, 1024])
    parser.add_argument("--samples", type=int, default=64, help="calibration windows")
    parser.add_argument("--length", type=int, default=128, help="tokens per window")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2, help="the fastest of these counts")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_this_process:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), options.widths[0], options)))
        return
    facts = {"machine": machine(), "widths": []}
    for width in options.widths:
        arguments = ["--in-this-process", "--widths", str(width)]
        for name in ("samples", "length", "bits", "group_size", "repeats"):
            arguments += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        cost = fresh_process("tests.benchmarks.blocks", arguments, {"OMP_WAIT_POLICY": "PASSIVE"})
        facts["widths"].append(last_line(cost))
    print(write_results(options.out, "blocks", facts, HEADER, [row(w) for w in facts["widths"]]))


def measure(folder: Path, width: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what one block of this width costs, measured in this process."""
    import torch

    walk, streams = random_walk(folder, width, options.samples, options.length)
    block = walk.load(0)
    weights = sum(parameter.numel() for parameter in block.parameters())
    forwards = [forward_pass(walk, block, streams) for _ in range(2)][1:]  # the first warms up
    reset_peak()
    before = rss_bytes()
    tries = []
    for _ in range(options.repeats):
        tries.append(block_seconds(walk, block, streams, options))
        if len(tries) == 1:
            peak = peak_rss_bytes()  # of the first: later ones find freed memory to use again
        forwards.append(forward_pass(walk, block, streams))
    best, forward = fastest(tries), fastest(forwards)
    seconds = {part: best[part] for part in (*PARTS, "block")}
    return {
        "hidden_size": width,
        "weights": weights,
        "tokens": options.samples * options.length,
        "threads": torch.get_num_threads(),
        "forward_seconds": forward["forward"],
        "seconds": seconds,
        "ratio_to_forward": {part: one / forward["forward"] for part, one in seconds.items()},
        "cpu_seconds": {"forward": forward["cpu"], "block": best["cpu"]},
        "cpu_ratio_to_forward": best["cpu"] / forward["cpu"],
        "peak_rss_bytes": peak,
        "peak_above_start_bytes": peak - before,
        "ratio_to_weight_bytes": (peak - before) / (4 * weights),
        "stream_bytes": streams.x_f.nbytes + streams.x_q.nbytes,
    }


def random_walk(folder: Path, width: int, samples: int, length: int) -> "tuple[BlockWalk, Streams]":
    """Return a walk through a Llama of one random block, and streams that differ in front of it."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig
    from transformers.utils.logging import disable_progress_bar

    from normtweak_core.model.streaming import StreamedModel
    from normtweak_core.quantization.streams import Streams
    from normtweak_core.quantization.walk import BlockWalk

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=1,
        num_attention_heads=width // HEAD_SIZE,
        num_key_value_heads=max(1, width // HEAD_SIZE // 2),
        max_position_embeddings=length,
    )
    disable_progress_bar()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    ids = torch.randint(0, 256, (samples, length))
    walk = BlockWalk(StreamedModel(folder, torch.float32, "cpu"), ids)
    x_f = torch.randn(samples, length, width)
    return walk, Streams(x_f, x_f + 0.1 * torch.randn(x_f.shape))


def fastest(tries: list[dict[str, float]]) -> dict[str, float]:
    """Return the least of each number."""
    return {name: min(one[name] for one in tries) for name in tries[0]}


def forward_pass(walk: "BlockWalk", block: Any, streams: "Streams") -> dict[str, float]:
    """Return the seconds of one pass of the float block over all windows."""
    from normtweak_core.quantization.streams import run_stream

    began, cpu = time.perf_counter(), time.process_time()
    run_stream(block, streams.x_f, walk.runner(0))
    return {"forward": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def block_seconds(
    walk: "BlockWalk", block: Any, streams: "Streams", options: argparse.Namespace
) -> dict[str, float]:
    """Return the seconds of each part of quantize_block, and of the whole."""
    import torch

    from normtweak_core.quantization.block import quantize_block
    from normtweak_core.quantization.config import QuantizationConfig
    from normtweak_core.quantization.plan import BlockPlan
    from normtweak_core.tweak.config import NormTweakConfig

    config = QuantizationConfig(bits=options.bits, group_size=options.group_size)
    plan = BlockPlan(0, 1, config, NormTweakConfig(), torch.float16)
    moments = {}
    began, cpu = time.perf_counter(), time.process_time()
    quantize_block(
        block,
        streams,
        walk.runner(0),
        plan,
        note=lambda part: moments.setdefault(part, time.perf_counter()),
    )
    ended, cpu_ended = time.perf_counter(), time.process_time()
    seconds = {part: moments[end] - moments[part] for part, end in PARTS.items()}
    return seconds | {"block": ended - began, "cpu": cpu_ended - cpu}


def row(found: dict[str, Any]) -> list[Any]:
    """Return the table's row of one width."""
    return [
        found["hidden_size"],
        found["weights"],
        found["forward_seconds"],
        *found["seconds"].values(),
        *found["ratio_to_forward"].values(),
        found["cpu_ratio_to_forward"],
        found["peak_rss_bytes"] / MEBI,
        found["peak_above_start_bytes"] / MEBI,
        found["ratio_to_weight_bytes"],
    ]


if __name__ == "__main__":
    main()
