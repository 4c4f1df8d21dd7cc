"""Memory and seconds of a block of a mixture by its number of experts: statistics are of one.

    python -m tests.benchmarks.experts [--experts 4 16 64]

Random Qwen3-MoE blocks, wide in front of their experts and narrow inside, so that the statistics of
an expert (H and C, 8 MiB) are far larger than its weights (0.75 MiB). Each in a process of its own;
prints a line of JSON for each. Memory above start holds the quantized copy of the block, its codes
and the streams; statistics of all experts at once would take ``all_statistics_bytes`` besides.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from tasks.engine.environment import peak_rss_bytes
from tests.benchmarks.memory import fresh_process, last_line, reset_peak, rss_bytes

HIDDEN, INNER, CHOSEN = 1024, 64, 2
SAMPLES, LENGTH = 24, 128


def main() -> None:
    """Measure every number of experts in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", nargs="+", type=int, default=[4, 16, 64])
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_this_process:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), options.experts[0])))
        return
    for count in options.experts:
        arguments = ["--in-this-process", "--experts", str(count)]
        cost = fresh_process("tests.benchmarks.experts", arguments, {"OMP_WAIT_POLICY": "PASSIVE"})
        print(json.dumps(last_line(cost)))


def measure(folder: Path, experts: int) -> dict[str, float]:
    """Return what a block of this many experts costs, measured in this process."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    from normtweak_core.model.streaming import StreamedModel
    from normtweak_core.quantization.block import quantize_block
    from normtweak_core.quantization.config import ExpertsConfig, QuantizationConfig
    from normtweak_core.quantization.plan import BlockPlan
    from normtweak_core.quantization.streams import Streams
    from normtweak_core.quantization.walk import BlockWalk
    from normtweak_core.tweak.config import NormTweakConfig

    config = Qwen3MoeConfig(
        vocab_size=256,
        hidden_size=HIDDEN,
        moe_intermediate_size=INNER,
        num_experts=experts,
        num_experts_per_tok=CHOSEN,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=LENGTH,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    ids = torch.randint(0, 256, (SAMPLES, LENGTH))
    walk = BlockWalk(StreamedModel(folder, torch.float32, "cpu"), ids)
    x_f = torch.randn(SAMPLES, LENGTH, HIDDEN)
    streams = Streams(x_f, x_f + 0.1 * torch.randn(x_f.shape))
    block = walk.load(0)
    settings = QuantizationConfig(bits=4, symmetric=True, experts=ExpertsConfig(min_tokens=0))
    plan = BlockPlan(0, 1, settings, NormTweakConfig(enabled=False), torch.float16)
    run = walk.runner(0)
    reset_peak()
    before, began = rss_bytes(), time.monotonic()
    done = quantize_block(block, streams, run, plan)
    weights = sum(parameter.nbytes for parameter in block.parameters())
    return {
        "experts": experts,
        "seconds": time.monotonic() - began,
        "above_start_bytes": peak_rss_bytes() - before,
        "weight_bytes": weights,
        "all_statistics_bytes": experts * 2 * 4 * (HIDDEN**2 + INNER**2),
        "fewest_tokens": min(one.tokens for one in done.report.experts),
    }


if __name__ == "__main__":
    main()
