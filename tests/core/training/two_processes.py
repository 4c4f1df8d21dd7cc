"""Trains a tiny model for a few steps, alone or as one of the processes of a launcher."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from normtweak_core.ternary.config import TernaryConfig
from normtweak_core.ternary.surgery import apply_surgery, plan_surgery, set_lambdas
from normtweak_core.training.objective import Objective
from normtweak_core.training.rates import Rates
from normtweak_core.training.trainer import Trainer, TrainingSetup

STEPS = 4


def main(source: Path, folder: Path) -> None:
    """Train the model of a folder, and write losses and the number of processes into another."""
    torch.set_num_threads(1)
    windows = torch.randint(96, (16, 16), generator=torch.Generator().manual_seed(1))
    model, teacher = (AutoModelForCausalLM.from_pretrained(source).eval() for _ in range(2))
    plan = plan_surgery(model, windows[:4])
    apply_surgery(model, plan, TernaryConfig())
    set_lambdas(model, [1.0] * len(plan.blocks), ramp_norm=True)
    setup = TrainingSetup(STEPS, 4, Rates(STEPS, 1e-3), Objective("mix"), save_every=STEPS)
    trainer = Trainer(model, teacher.requires_grad_(False), windows, setup, folder, "two")
    state = trainer.run(STEPS)
    if trainer.accelerator.is_main_process:
        facts = {"losses": state.losses, "processes": trainer.accelerator.num_processes}
        (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
