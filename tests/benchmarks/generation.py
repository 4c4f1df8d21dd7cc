"""Tokens per second of calibration text, beside a bare transformers generate of the same shape.

    python -m tests.benchmarks.generation [--models reference:llama random] [--batches 1 8 32 128]

Both write windows of the same length from the same float model with the same sampling rule (top 50
at temperature 1), by turns in one process; the fastest of each counts. `random` is a Llama of 58
million random weights with the tokenizer of reference:llama. Tokens per second depend on the
machine and its load, the ratio hardly. Ours includes what generate leaves out: finding the first
tokens, ending and beginning documents inside a window, a random stream per window. The last columns
count, of 16 windows, those that are the same as when each is written alone. Writes generation.json
(with the command) and generation.md.
"""

import argparse
import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.results import DEFAULT_OUT, machine, write_results

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEADER = [
    "model",
    "windows at once",
    "ours tokens/s",
    "transformers tokens/s",
    "ours / transformers",
    "same, CPU",
    "same windows, float32",
    "same windows, bfloat16",
]
WINDOWS = 16  # that are compared
RANDOM = "random"
SHAPE = {
    "vocab_size": 32_000,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
}


def main() -> None:
    """Measure every batch size and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", nargs="+", default=["reference:llama", "reference:neox", RANDOM]
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--length", type=int, default=128, help="tokens per window")
    parser.add_argument("--repeats", type=int, default=2, help="the fastest of these counts")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

    import torch

    facts: dict[str, Any] = {
        "machine": machine() | {"threads": torch.get_num_threads()},
        "length": options.length,
        "batches": [],
    }
    for source in options.models:
        model, tokenizer = random_model() if source == RANDOM else float_model(source)
        same = agreement(model, tokenizer, options.batches, options.length)
        for batch in options.batches:
            found = measure(model, tokenizer, batch, options.length, options.repeats)
            found |= same[batch]
            name = Path(source).name  # a folder is known by its name, not by where it lies
            facts["batches"].append({"model": name, "windows_at_once": batch} | found)
            print(facts["batches"][-1], flush=True)
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


def random_model() -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return a Llama of random weights, and a tokenizer of fewer ids than it has."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.float32)
    return model.eval(), float_model("reference:llama")[1]


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
    (wall, cpu), (their_wall, their_cpu) = map(fastest, (ours, theirs))
    tokens = batch * length
    return {
        "tokens_per_second": tokens / wall,
        "transformers_tokens_per_second": tokens / their_wall,
        "ratio": their_wall / wall,
        "cpu_ratio": their_cpu / cpu,
    }


def agreement(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batches: list[int], length: int
) -> dict[int, dict[str, int]]:
    """Return, for each size of a batch, how many windows are those that are written one by one."""
    import torch

    same: dict[int, dict[str, int]] = {batch: {} for batch in batches}
    for dtype in (torch.float32, torch.bfloat16):
        one = copy.deepcopy(model).to(dtype)
        alone = windows(one, tokenizer, WINDOWS, length, batch=1)
        for batch in batches:
            other = windows(one, tokenizer, WINDOWS, length, batch)
            same[batch][str(dtype)] = int((other == alone).all(1).sum())
    return same


def fastest(tries: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the least wall and the least CPU seconds."""
    wall, cpu = zip(*tries, strict=True)
    return min(wall), min(cpu)


def write_ours(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch: int, length: int
) -> None:
    """Write calibration windows, as many as are written at once."""
    assert windows(model, tokenizer, batch, length, batch).shape == (batch, length)


def windows(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    count: int,
    length: int,
    batch: int,
) -> "Tensor":
    """Return calibration windows that are written in batches of a size."""
    from normtweak_core.calibration.generate import generate_windows

    return generate_windows(model, tokenizer, count, length, seed=0, batch_size=batch).input_ids


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


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Return how long it takes, by the clock and of the processor."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


if __name__ == "__main__":
    main()
