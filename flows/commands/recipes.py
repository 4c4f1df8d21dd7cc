"""The commands that carry out a recipe: `normtweak quantize`, `ternary`, `finetune` and studies."""

import argparse
import os
from functools import partial

from flows.commands.command import STATE, Command, add_recipe, add_result
from flows.commands.execution import print_line, quiet_libraries, run_flow
from flows.commands.first_line import first_line
from flows.commands.meant import add_recipe_or_model, meaning, meant_recipe
from flows.recipes.kinds import RECIPES
from normtweak_core.lazy import lazy
from tasks.engine.environment import set_variables, state_root

# A wrong recipe is answered before what checks a right one is read.
registered_checks = lazy("flows.checks.preflight")
CHECKS = {"polynomial": lazy("flows.checks.polynomial"), "ablate": lazy("flows.checks.ablation")}
terminal = lazy("flows.reports.terminal")

# What the commands say of themselves, and their examples; the flow has the name of its command.
TEXTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "quantize": (
        "Carry out a recipe. Finished stages are kept: after an interruption, or with a changed\n"
        "recipe, only what is missing is computed. A model with --bits needs no recipe.",
        (
            "quantize conf/quickstart.yaml",
            "quantize MODEL --bits 4 --group-size 64 --effort best --save-recipe my.yaml",
            "quantize conf/quickstart.yaml --set quantization.bits=3 --set seed=1",
            "quantize my.yaml --result result.json",
        ),
    ),
    "ternary": (
        "Fine-tune a float model with quantized forward passes until its linears hold the values\n"
        "-1, 0 and 1, an RMSNorm before each. Ctrl-C saves; the same command goes on from there.",
        (
            "ternary conf/ternary-quickstart.yaml",
            "ternary conf/ternary-quickstart.yaml --set ternary.steps=1000",
        ),
    ),
    "finetune": (
        "Train weights and scales of a quantized model, block by block and then end to end,\n"
        "towards the float model it was made from. Width and grid stay as they are. Ctrl-C saves;\n"
        "the same command goes on from there.",
        (
            "finetune conf/finetune-quickstart.yaml --set model.source=EXPORT_DIR",
            "finetune my.yaml --set finetune.steps=2000",
        ),
    ),
    "polynomial": (
        "Train a small network to fit polynomials, then again with weights of 8 to 1 bits, from\n"
        "its own weights and from random ones; write a table and two figures. Finished trainings\n"
        "are kept, and one that was stopped goes on.",
        (
            "polynomial conf/polynomial-small.yaml",
            "polynomial conf/polynomial.yaml --set grid.bits=[1.58] --result result.json",
        ),
    ),
    "ablate": (
        "Quantize and evaluate a base and the cells of up to seven studies: calibration source,\n"
        "loss, target, stage, learning rate over depth, iterations and width; write a table and a\n"
        "figure of each. Finished stages are kept, and cells share what they have in common.",
        (
            "ablate conf/ablation-small.yaml",
            "ablate conf/ablation.yaml --set ablation.studies.bits=[] --result result.json",
        ),
    ),
}


def carry_out(name: str, options: argparse.Namespace) -> int:
    """Check a recipe, run the flow of this name and print what came of it."""
    values, text = meant_recipe(options)
    recipe = RECIPES[name].parse(values)
    quiet_libraries()
    set_variables(state_root())  # before the check: it may have to ask torch for GPUs
    with first_line(f"{name} {recipe.name}: begins; all state lies under {state_root()}"):
        ready = CHECKS.get(name, registered_checks).preflight(recipe, state_root(), options.result)
    for line in meaning(text):
        print_line(line)
    if ready is not None and ready.is_local:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return run_flow(
        name,
        lambda: getattr(lazy(f"flows.{name}"), name)(recipe),
        options.result,
        lambda result: terminal.show(name, recipe.name, result),
    )


def _add_arguments(name: str, parser: argparse.ArgumentParser) -> None:
    (add_recipe_or_model if name == "quantize" else add_recipe)(parser)
    add_result(parser)


COMMANDS = {
    name: Command(
        f"{text}\n{STATE}", examples, partial(_add_arguments, name), partial(carry_out, name)
    )
    for name, (text, examples) in TEXTS.items()
}
