"""What our paired evaluation costs beside the bare forward passes of both models.

    python -m tests.benchmarks.evaluation [--models llama neox] [--rounds 7]

Both run in turn, round by round, on the same windows, and are compared by the median of the ratios
of one round. Ours reads both models from disk, block by block; the bare passes have them in memory.
The quantized model is the float one a second time: only the time counts.
"""

import argparse
import statistics
import time

import torch

from tests.benchmarks.results import DEFAULT_OUT, machine, write_results

WINDOWS, LENGTH = 32, 256


def main() -> None:
    """Time both and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["llama", "neox"])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    facts = {"machine": machine(), "windows": WINDOWS, "length": LENGTH}
    rows = []
    for name in options.models:
        bare, ours = measure(name, options.rounds)
        tokens = WINDOWS * LENGTH
        share = statistics.median(b / o for b, o in zip(bare, ours, strict=True))
        rows.append(
            [name, tokens / statistics.median(bare), tokens / statistics.median(ours), share]
        )
    header = ["model", "bare passes, tokens/s", "paired evaluation, tokens/s", "share"]
    facts["rows"] = [dict(zip(header, row, strict=True)) for row in rows]
    print(write_results(DEFAULT_OUT, "evaluation", facts, header, rows))


def measure(name: str, rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds of the bare passes and of the evaluation, one of each a round."""
    from normtweak_core.evaluate.divergence import compare
    from normtweak_core.evaluate.predictions import TOKENS_PER_BATCH, walked
    from normtweak_core.model.config import ModelConfig
    from normtweak_core.model.loading import load_causal_lm
    from normtweak_core.model.source import resolve_source
    from normtweak_core.model.streaming import StreamedModel

    folder = resolve_source(ModelConfig(source=f"reference:{name}")).path
    models = [load_causal_lm(folder, torch.float32, "cpu") for _ in range(2)]
    random = torch.Generator().manual_seed(0)
    windows = torch.randint(models[0].config.vocab_size, (WINDOWS, LENGTH), generator=random)
    bare, ours = [], []
    for turn in range(rounds + 1):
        began = time.perf_counter()
        with torch.inference_mode():
            for batch in windows.split(TOKENS_PER_BATCH // LENGTH):
                for model in models:
                    model(input_ids=batch, use_cache=False)
        between = time.perf_counter()
        streamed = (StreamedModel(folder, torch.float32, "cpu") for _ in range(2))
        compare(*(walked(model, windows) for model in streamed), windows)
        if turn:  # the first one warms up
            bare.append(between - began)
            ours.append(time.perf_counter() - between)
    return bare, ours


if __name__ == "__main__":
    main()
