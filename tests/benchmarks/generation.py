"""Tokens per second of calibration text, beside a bare transformers generate of the same shape.

    python -m tests.benchmarks.generation [--model reference:llama] [--batches 1 8 32 128]

Both write windows of the same length from the same float model with the same sampling rule (top 50
at temperature 1), by turns in one process; the fastest of each counts. Tokens per second depend on
the machine and its load, the ratio hardly. Ours includes what generate leaves out: finding the
first tokens, ending and beginning documents inside a window, a random stream per window. Writes
generation.json (with the command) and generation.md.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.results import DEFAULT_OUT, machine, write_results

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEADER = ["windows at once", "ours tokens/s", "transformers tokens/s", "ours / transformers"]


def main() -> None:
    """Measure every batch size and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="reference:llama", help="as model.source of a recipe")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--length", type=int, default=256, help="tokens per window")
    parser.add_argument("--repeats", type=int, default=2, help="the fastest of these counts")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

    import torch

    model, tokenizer = float_model(options.model)
    facts: dict[str, Any] = {
        "machine": machine() | {"threads": torch.get_num_threads()},
        "model": Path(options.model).name,  # a folder is known by its name, not by where it lies
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "length": options.length,
        "batches": [],
    }
    for batch in options.batches:
        facts["batches"].append(measure(model, tokenizer, batch, options.length, options.repeats))
    rows = [list(found.values()) for found in facts["batches"]]
    print(write_results(options.out, "generation", facts, HEADER, rows))


def float_model(source: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return a float model and its tokenizer."""
    import torch
    from transformers import AutoTokenizer

    from normtweak_core.model.config import ModelConfig
    from normtweak_core.model.loading import load_causal_lm
    from normtweak_core.model.source import resolve_source

    folder = resolve_source(ModelConfig(source=source)).path
    model = load_causal_lm(folder, torch.float32, "cpu")
    return model, AutoTokenizer.from_pretrained(folder)


def measure(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    batch: int,
    length: int,
    repeats: int,
) -> dict[str, float]:
    """Return both rates at one batch size."""
    write_ours(model, tokenizer, batch, 8)  # warms up
    write_theirs(model, tokenizer, batch, 8)
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(seconds(lambda: write_ours(model, tokenizer, batch, length)))
        theirs.append(seconds(lambda: write_theirs(model, tokenizer, batch, length)))
    tokens = batch * length
    return {
        "windows_at_once": batch,
        "tokens_per_second": tokens / min(ours),
        "transformers_tokens_per_second": tokens / min(theirs),
        "ratio": min(theirs) / min(ours),
    }


def write_ours(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch: int, length: int
) -> None:
    """Write calibration windows, as many as are written at once."""
    from normtweak_core.calibration.generate import generate_windows

    found = generate_windows(model, tokenizer, batch, length, seed=0, batch_size=batch)
    assert found.input_ids.shape == (batch, length)


def write_theirs(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch: int, length: int
) -> None:
    """Let transformers write as many tokens from one given first token, never ending early."""
    import torch

    first = torch.full((batch, 1), tokenizer.convert_tokens_to_ids(tokenizer.tokenize("a"))[0])
    with torch.no_grad():
        found = model.generate(
            first,
            attention_mask=torch.ones_like(first),
            do_sample=True,
            top_k=50,
            top_p=1.0,
            temperature=1.0,
            min_length=length,
            max_length=length,
            pad_token_id=0,
        )
    assert found.shape == (batch, length)


def seconds(work: Callable[[], None]) -> float:
    """Return how long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
