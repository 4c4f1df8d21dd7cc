"""The parsers of the commands around the work: pages, schedules, disk, reference models."""

import argparse

from flows.commands import bodies as commands
from flows.commands.options import GivenPath, add_command
from normtweak_core.reference.architectures import REFERENCE_NAMES


def add_service_commands(group: argparse._SubParsersAction) -> None:
    """Add clean, reference, ui and serve."""
    _add_clean(group)
    _add_reference(group)
    _add_pages(group)


def _add_clean(group: argparse._SubParsersAction) -> None:
    command = add_command(
        group,
        "clean",
        "free disk: remove what no finished stage needs",
        "Remove streams between blocks, temporary files, what rebuilds have left, and artefacts\n"
        "that no finished stage refers to. Exports, the registry and finished stages stay.\n"
        "Refused while a run is alive.",
        ["clean", "clean --all"],
    )
    command.add_argument(
        "--all",
        action="store_true",
        dest="everything",
        help="remove all that is made again: finished stages, exports, evaluations, studies, "
        "unfinished trainings, logs and the event file too; registered versions keep their own "
        "copies and stay, as does Prefect's history",
    )
    command.set_defaults(run=commands.run_clean)


def _add_reference(group: argparse._SubParsersAction) -> None:
    command = add_command(
        group,
        "reference",
        "train a built-in reference model",
        "The models behind model.source: reference:NAME.",
        ["reference train llama", "reference train neox --steps 100 --out ./neox"],
    )
    actions = command.add_subparsers(required=True, metavar="ACTION", dest="action")
    train = actions.add_parser(
        "train",
        help="train a reference model, or go on with its training",
        description="Train a reference model on text that every Python installation carries.\n"
        "Interrupt it at will: the same command goes on from the last saved step.",
        epilog="examples:\n  normtweak reference train llama\n"
        "  normtweak reference train neox --steps 100 --out ./neox",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("name", choices=REFERENCE_NAMES, metavar="NAME", help=_either())
    train.add_argument(
        "--out",
        action=GivenPath,
        metavar="DIR",
        help="folder of the model (default: in this package)",
    )
    train.add_argument(
        "--work",
        action=GivenPath,
        metavar="DIR",
        help="folder of the resumable state (default: reference/NAME under NORMTWEAK_HOME)",
    )
    train.add_argument("--steps", type=int, metavar="N", help="optimizer steps")
    train.set_defaults(run=commands.run_reference_train)


def _add_pages(group: argparse._SubParsersAction) -> None:
    ui = add_command(
        group,
        "ui",
        "Prefect and MLflow pages on this machine, with their links",
        "Start the Prefect server with its page and the MLflow page, and print where they are.",
        ["ui", "ui --prefect-port 4300 --mlflow-port 5100"],
    )
    _add_port(ui, "--prefect-port", "port of the Prefect page")
    _add_port(ui, "--mlflow-port", "port of the MLflow page")
    ui.set_defaults(run=commands.run_ui)
    serve = add_command(
        group,
        "serve",
        "carry out the scheduled deployments of prefect.yaml",
        "Serve the deployments of prefect.yaml in this process until it is stopped.",
        ["serve", "serve --prefect-port 4300"],
    )
    _add_port(serve, "--prefect-port", "port of the Prefect page")
    serve.set_defaults(run=commands.run_serve)


def _either() -> str:
    return " or ".join(REFERENCE_NAMES)


def _add_port(command: argparse.ArgumentParser, flag: str, text: str) -> None:
    command.add_argument(
        flag, type=_port, metavar="PORT", help=f"{text} (default: the usual one or the next free)"
    )


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535; found {text!r}")
    return int(text)
