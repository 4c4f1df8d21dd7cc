"""A whole training step of a reference model: float, weight-only ternary, and the full path.

    python -m tests.benchmarks.step [--models llama neox] [--rounds 12]

The three are stepped in turn, round by round, and compared by the median of their ratios to the
float step of the same round, so that a machine that slows down slows all of them.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.results import DEFAULT_OUT, machine, write_results

BATCH, LENGTH = 8, 256
WARM_UP = 2
PATHS = {
    "weights only": {"norm": "none", "activation_bits": None},
    "RMSNorm and int8 activations": {"norm": "rms"},
    "the same, a gain for each linear": {"norm": "rms", "share_gains": False},
}


def main() -> None:
    """Time the steps and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["llama", "neox"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    rows, facts = [], {"machine": machine(), "batch": BATCH, "length": LENGTH}
    for name in options.models:
        steps = {"float": step_of(name, None)}
        steps |= {path: step_of(name, settings) for path, settings in PATHS.items()}
        if options.profile:
            _profile(steps["RMSNorm and int8 activations"])
        seconds = measure(steps, options.rounds)
        alone = statistics.median(seconds["float"])
        for path, values in seconds.items():
            pairs = zip(values, seconds["float"], strict=True)
            ratio = statistics.median(value / other for value, other in pairs)
            rows.append([name, path, BATCH * LENGTH / alone / ratio, ratio])
    header = ["model", "step", "tokens per second", "times the float step"]
    print(write_results(DEFAULT_OUT, "step", facts, header, rows))


def step_of(name: str, settings: dict | None) -> Callable[[], None]:
    """Return a function that does one optimizer step, forward to update."""
    from normtweak_core.model.config import ModelConfig
    from normtweak_core.model.loading import load_causal_lm
    from normtweak_core.model.source import resolve_source
    from normtweak_core.ternary.config import TernaryConfig
    from normtweak_core.ternary.surgery import apply_surgery, plan_surgery, set_lambdas
    from normtweak_core.training.objective import Objective

    folder = resolve_source(ModelConfig(source=f"reference:{name}")).path
    model = load_causal_lm(folder, torch.float32, "cpu")
    vocabulary = model.config.vocab_size
    ids = torch.randint(vocabulary, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    if settings is None:
        model.requires_grad_(True)
    else:
        config, plan = TernaryConfig(**settings), plan_surgery(model, ids)
        apply_surgery(model, plan, config)
        set_lambdas(model, [1.0] * len(plan.blocks), config.ramp_norm)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    objective = Objective("ce")

    def step() -> None:
        optimizer.zero_grad()
        objective.loss(model(ids, use_cache=False), None, ids).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return step


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every step, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + WARM_UP):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _profile(step: Callable[[], None]) -> None:
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    main()
