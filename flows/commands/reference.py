"""`normtweak reference`: the built-in models, trained from text that Python itself carries."""

import argparse
import contextlib
import os
from pathlib import Path

from flows.checks.machine import existing_folder
from flows.commands.command import Command, GivenPath
from flows.commands.execution import logged, print_line
from flows.commands.failures import EXIT_OK
from normtweak_core.errors import InputError
from normtweak_core.reference import architectures
from normtweak_core.reference.architectures import REFERENCE_NAMES
from tasks.engine.cleaning import in_use
from tasks.engine.environment import set_variables, state_root
from tasks.engine.root_layout import REFERENCE


def run_train(options: argparse.Namespace) -> int:
    """Train a reference model, or go on with its training."""
    if options.steps is not None and options.steps < 1:
        raise InputError(f"--steps must be at least 1; found {options.steps}: raise it.")
    root = state_root()
    out = options.out or Path(architectures.__file__).with_name("models") / options.name
    work_folder = options.work or root / REFERENCE / options.name
    for flag, folder in (("--out", out), ("--work", work_folder)):
        _require_folder(flag, folder)
    set_variables(root)

    def work() -> int:
        # Torch, once the request is known to be a good one.
        from normtweak_core.reference.train import TrainingPlan, train_reference

        own = work_folder.absolute().is_relative_to(root)  # else no clean can take it away
        plan = TrainingPlan(**({} if options.steps is None else {"steps": options.steps}))
        with in_use(root) if own else contextlib.nullcontext():
            losses = train_reference(options.name, out, work_folder, plan)
        for name, value in losses.items():
            print_line(f"{name}: {value:.4f} nats per token")
        print_line(f"written to {out}; the state under {work_folder} can be removed")
        return EXIT_OK

    return logged("reference", work)


def _require_folder(flag: str, folder: Path) -> None:
    there = existing_folder(folder.absolute())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"{flag} must be a folder you may write to; {folder} cannot be made: {there} is "
            f"{'not writable' if there.is_dir() else 'a file'}."
        )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    train = actions.add_parser("train", help="train a reference model, or go on with its training")
    TRAIN_COMMAND.describe(train)


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    names = " or ".join(REFERENCE_NAMES)
    parser.add_argument("name", choices=REFERENCE_NAMES, metavar="NAME", help=names)
    parser.add_argument(
        "--out",
        action=GivenPath,
        metavar="DIR",
        help="folder of the model (default: in this package)",
    )
    parser.add_argument(
        "--work",
        action=GivenPath,
        metavar="DIR",
        help="folder of the resumable state (default: reference/NAME under NORMTWEAK_HOME)",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="optimizer steps")


TRAIN_COMMAND = Command(
    "Train a reference model on text that every Python installation carries.\n"
    "Interrupt it at will: the same command goes on from the last saved step.",
    ["reference train llama", "reference train neox --steps 100 --out ./neox"],
    _add_train_arguments,
    run_train,
)
COMMANDS = {
    "reference": Command(
        "The models behind model.source: reference:NAME.",
        TRAIN_COMMAND.examples,
        _add_arguments,
        run_train,
    )
}
