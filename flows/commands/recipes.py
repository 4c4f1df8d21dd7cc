"""The commands that carry out a recipe: `normtweak quantize`, `ternary`, `finetune` and studies."""

import argparse
import os
from dataclasses import dataclass
from functools import partial

from flows.commands.command import STATE, Command, add_recipe, add_result
from flows.commands.execution import lazily, quiet_libraries, run_flow
from flows.commands.first_line import first_line
from flows.recipes.kinds import RECIPES
from tasks.engine.environment import set_variables, state_root


@dataclass(frozen=True)
class RecipeCommand:
    """What the commands that carry out a recipe differ in; the flow has the command's name.

    Its functions are named, and imported when their turn comes: a wrong recipe is answered before
    what checks a right one is read.
    """

    text: str
    examples: tuple[str, ...]
    check: str  # of a recipe, the state root and the result file, to what is ready


RECIPE_COMMANDS = {
    "quantize": RecipeCommand(
        "Carry out a recipe. Finished stages are kept: after an interruption, or with a changed\n"
        "recipe, only what is missing is computed.",
        (
            "quantize conf/quickstart.yaml",
            "quantize conf/quickstart.yaml --set quantization.bits=3 --set seed=1",
            "quantize my.yaml --result result.json",
        ),
        "flows.checks.inputs:preflight",
    ),
    "ternary": RecipeCommand(
        "Fine-tune a float model with quantized forward passes until its linears hold the values\n"
        "-1, 0 and 1, an RMSNorm before each. Ctrl-C saves; the same command goes on from there.",
        (
            "ternary conf/ternary-quickstart.yaml",
            "ternary conf/ternary-quickstart.yaml --set ternary.steps=1000",
        ),
        "flows.checks.ternary:ternary_preflight",
    ),
    "finetune": RecipeCommand(
        "Train weights and scales of a quantized model, block by block and then end to end,\n"
        "towards the float model it was made from. Width and grid stay as they are. Ctrl-C saves;\n"
        "the same command goes on from there.",
        (
            "finetune conf/finetune-quickstart.yaml --set model.source=EXPORT_DIR",
            "finetune my.yaml --set finetune.steps=2000",
        ),
        "flows.checks.finetune:finetune_preflight",
    ),
    "polynomial": RecipeCommand(
        "Train a small network to fit polynomials, then again with weights of 8 to 1 bits, from\n"
        "its own weights and from random ones; write a table and two figures. Finished trainings\n"
        "are kept, and one that was stopped goes on.",
        (
            "polynomial conf/polynomial-small.yaml",
            "polynomial conf/polynomial.yaml --set grid.bits=[1.58] --result result.json",
        ),
        "flows.checks.polynomial:polynomial_preflight",
    ),
    "ablate": RecipeCommand(
        "Quantize and evaluate a base and the cells of up to seven studies: calibration source,\n"
        "loss, target, stage, learning rate over depth, iterations and width; write a table and a\n"
        "figure of each. Finished stages are kept, and cells share what they have in common.",
        (
            "ablate conf/ablation-small.yaml",
            "ablate conf/ablation.yaml --set ablation.studies.bits=[] --result result.json",
        ),
        "flows.checks.ablation:ablation_preflight",
    ),
}


def carry_out(name: str, options: argparse.Namespace) -> int:
    """Check a recipe, run the flow of this name and print what came of it."""
    command = RECIPE_COMMANDS[name]
    recipe = RECIPES[name].load(options.recipe, options.overrides)
    quiet_libraries()
    set_variables(state_root())  # before the check: it may have to ask torch for GPUs
    with first_line(f"{name} {recipe.name}: begins; all state lies under {state_root()}"):
        ready = lazily(command.check)(recipe, state_root(), options.result)
    if ready is not None and ready.is_local:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    flow = partial(lazily(f"flows.{name}:{name}"), recipe)
    show = partial(lazily("flows.reports.terminal:show"), name, recipe.name)
    return run_flow(name, flow, options.result, show)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_result(parser)


COMMANDS = {
    name: Command(f"{one.text}\n{STATE}", one.examples, _add_arguments, partial(carry_out, name))
    for name, one in RECIPE_COMMANDS.items()
}
