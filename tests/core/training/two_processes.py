"""Trainings of tiny models, in one process or as one of several (gloo)."""

import json
import signal
from pathlib import Path

import torch
from torch import distributed, multiprocessing
from torch.distributed.tensor import DTensor

from normtweak_core.finetune.config import FinetuneConfig, LoraConfig
from normtweak_core.finetune.model import peak_rates, put_on_grids
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.ternary.config import TernaryConfig
from normtweak_core.ternary.schedule import lambdas
from normtweak_core.ternary.surgery import (
    apply_surgery,
    forget_inputs,
    plan_surgery,
    set_lambdas,
    trained_blocks,
)
from normtweak_core.training.objective import Objective, held_out_losses
from normtweak_core.training.rates import Rates
from normtweak_core.training.recompute import recompute_blocks
from normtweak_core.training.trainer import Trainer, TrainingSetup
from tests.tiny_exports import quantize_all, save_tiny_model, tiny_config

STEPS, STOP = 6, 5
# Rows that two processes cannot halve.
UNEVEN = {"vocab_size": 97, "intermediate_size": 65}
CASES = ("ternary", "grids", "lora")


def make_model(folder: Path) -> Path:
    return save_tiny_model(folder, tiny_config("llama", **UNEVEN), tokenizer=False)


def make_trainer(case: str, source: Path, folder: Path) -> Trainer:
    """Return the training of a case; each looks at something else that sharding could break."""
    random = torch.Generator().manual_seed(1)
    windows = torch.randint(97, (30, 12), generator=random)
    model, teacher = (load_causal_lm(source, torch.float32, "cpu") for _ in range(2))
    make = _ternary if case == "ternary" else _on_grids
    setup, before_step, before_measure = make(case, source, model, windows)

    def measure():
        before_measure()
        return held_out_losses(model, teacher, windows[20:], setup.objective)

    return Trainer(model, teacher, windows[:20], setup, folder, case, before_step, measure)


def _setup(objective: Objective, rate: float, **others) -> TrainingSetup:
    return TrainingSetup(
        steps=STEPS,
        batch=4,
        rates=Rates(STEPS, rate, weight_decay=0.1),
        objective=objective,
        clip=0.2,  # shortens every gradient
        save_every=2,
        measured=(STOP, STEPS),
        **others,
    )


def _ternary(case: str, source: Path, model, windows):
    plan, config = plan_surgery(model, windows[:4]), TernaryConfig(steps=STEPS, start="absmean")
    apply_surgery(model, plan, config)
    blocks = len(plan.blocks)
    recompute_blocks(trained_blocks(model), forget_inputs)
    setup = _setup(Objective("mix", hidden_weight=0.1), 1e-3, accumulate=2)

    def set_schedule(model, step):
        set_lambdas(model, lambdas(config, step, blocks), ramp_norm=True)

    return setup, set_schedule, lambda: set_lambdas(model, [1.0] * blocks, ramp_norm=True)


def _on_grids(case: str, source: Path, model, windows):
    lora = LoraConfig(rank=3, lr_ratio=0.1) if case == "lora" else None
    config = FinetuneConfig(steps=STEPS, lora=lora)
    layers = quantize_all(source, 3, None, False)
    put_on_grids(model, layers, {}, config, "full", torch.float16, seed=0)
    peaks = peak_rates(model, config)
    highest = max(peaks.values())
    ratios = {name: peak / highest for name, peak in peaks.items()}
    dtype = "float32" if lora is None else "bfloat16"
    setup = _setup(Objective("kd"), highest, ratios=ratios, dtype=dtype)
    return setup, lambda *_: None, lambda: None


def sizes(model) -> list[int]:
    """Return how many numbers of a model this process holds, and all of them."""
    held = whole = 0
    for parameter in model.parameters():
        whole += parameter.numel()
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        held += local.numel()
    return [held, whole]


def facts_of(trainer: Trainer) -> dict:
    steps = []
    state = trainer.run(STEPS, lambda step, *_: steps.append(step))
    return {
        "first": steps[0],
        "sha256": state.sha256(),
        "losses": state.losses,
        "held_out": [one.objective for one in state.held_out.values()],
        "best": state.best.step,
        "sizes": [sizes(trainer.model), sizes(trainer.teacher)],
    }


def work(rank: int, count: int, source: Path, folder: Path, cases, again: bool) -> None:
    """Train as one of ``count`` processes; write what each case came to, by process."""
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / f"store-{again}"), count)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
    facts = {}
    for case in cases:
        whole = folder / f"whole-{case}-{again}"
        facts[case] = facts_of(make_trainer(case, source, whole))
        stopped = make_trainer(case, source, folder / f"stopped-{case}")
        if again:
            facts[case]["resumed"] = facts_of(stopped)
        else:
            stop(stopped, rank, case)
    (folder / f"facts-{again}-{rank}.json").write_text(json.dumps(facts))
    distributed.destroy_process_group()


def stop(trainer: Trainer, rank: int, case: str) -> None:
    """End a training after `STOP` steps; in one case by a signal that one process alone hears."""
    if case != "grids":
        trainer.run(STOP)
        return

    def press(step, *_):
        if rank == 1 and step == STOP:
            signal.raise_signal(signal.SIGINT)

    try:
        done = trainer.run(STEPS, press).step
    except KeyboardInterrupt:
        assert rank == 1
    else:
        assert (rank, done) == (0, STOP)


def run(source: Path, folder: Path, cases, again: bool, count: int = 2) -> list[dict]:
    """Return what each process found."""
    multiprocessing.spawn(work, (count, source, folder, cases, again), nprocs=count)
    return [
        json.loads((folder / f"facts-{again}-{rank}.json").read_text()) for rank in range(count)
    ]
