"""The parsers of the commands that carry out a recipe."""

import argparse

from flows.commands import bodies as commands
from flows.commands.options import STATE, add_command, add_recipe, add_result


def add_recipe_commands(group: argparse._SubParsersAction) -> None:
    """Add quantize, ternary, finetune, plan, polynomial and ablate."""
    _add_quantize(group)
    _add_ternary(group)
    _add_finetune(group)
    _add_plan(group)
    _add_polynomial(group)
    _add_ablate(group)


def _add_quantize(group: argparse._SubParsersAction) -> None:
    command = add_command(
        group,
        "quantize",
        "quantize, verify, evaluate and register a model",
        "Carry out a recipe. Finished stages are kept: after an interruption, or with a changed\n"
        f"recipe, only what is missing is computed.\n{STATE}",
        [
            "quantize conf/quickstart.yaml",
            "quantize conf/quickstart.yaml --set quantization.bits=3 --set seed=1",
            "quantize my.yaml --result result.json",
        ],
    )
    add_recipe(command)
    add_result(command)
    command.set_defaults(run=commands.run_quantize)


def _add_ternary(group: argparse._SubParsersAction) -> None:
    command = add_command(
        group,
        "ternary",
        "train a model until its weights are ternary; verify and register it",
        "Fine-tune a float model with quantized forward passes until its linears hold the values\n"
        "-1, 0 and 1, an RMSNorm before each. Ctrl-C saves; the same command goes on from there.\n"
        f"{STATE}",
        [
            "ternary conf/ternary-quickstart.yaml",
            "ternary conf/ternary-quickstart.yaml --set ternary.steps=1000",
        ],
    )
    add_recipe(command)
    add_result(command)
    command.set_defaults(run=commands.run_ternary)


def _add_finetune(group: argparse._SubParsersAction) -> None:
    command = add_command(
        group,
        "finetune",
        "train an export of quantize on, on its own grid; verify and register it",
        "Train weights and scales of a quantized model, block by block and then end to end,\n"
        "towards the float model it was made from. Width and grid stay as they are. Ctrl-C saves;\n"
        f"the same command goes on from there.\n{STATE}",
        [
            "finetune conf/finetune-quickstart.yaml --set model.source=EXPORT_DIR",
            "finetune my.yaml --set finetune.steps=2000",
        ],
    )
    add_recipe(command)
    add_result(command)
    command.set_defaults(run=commands.run_finetune)


def _add_plan(group: argparse._SubParsersAction) -> None:
    command = add_command(
        group,
        "plan",
        "say what a run would need and find cached; write nothing",
        "Check a recipe of quantize, ternary or finetune as its command would, and print disk,\n"
        "memory, time and finished stages. Nothing is written; a model of the hub must be in the\n"
        "local cache already.",
        ["plan conf/quickstart.yaml", "plan conf/ternary-quickstart.yaml --set ternary.steps=600"],
    )
    add_recipe(command)
    command.set_defaults(run=commands.run_plan)


def _add_polynomial(group: argparse._SubParsersAction) -> None:
    command = add_command(
        group,
        "polynomial",
        "study quantization-aware training on a small network",
        "Train a small network to fit polynomials, then again with weights of 8 to 1 bits, from\n"
        "its own weights and from random ones; write a table and two figures. Finished trainings\n"
        f"are kept, and one that was stopped goes on.\n{STATE}",
        [
            "polynomial conf/polynomial-small.yaml",
            "polynomial conf/polynomial.yaml --set grid.bits=[1.58] --result result.json",
        ],
    )
    add_recipe(command)
    add_result(command)
    command.set_defaults(run=commands.run_polynomial)


def _add_ablate(group: argparse._SubParsersAction) -> None:
    command = add_command(
        group,
        "ablate",
        "vary one factor of a recipe at a time and compare what comes of it",
        "Quantize and evaluate a base and the cells of up to seven studies: calibration source,\n"
        "loss, target, stage, learning rate over depth, iterations and width; write a table and a\n"
        "figure of each. Finished stages are kept, and cells share what they have in common.\n"
        f"{STATE}",
        [
            "ablate conf/ablation-small.yaml",
            "ablate conf/ablation.yaml --set ablation.studies.bits=[] --result result.json",
        ],
    )
    add_recipe(command)
    add_result(command)
    command.set_defaults(run=commands.run_ablate)
