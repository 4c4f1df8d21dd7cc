"""Quantize a language model, prove that the result opens elsewhere, and register it."""

# Nothing heavy is imported here: bad input is answered before torch, Prefect or MLflow load.

import argparse
import difflib
import gc
import importlib.metadata
import sys
from pathlib import Path
from typing import NoReturn

from flows import commands
from flows.failures import exit_code, sigterm_raises
from normtweak_core.errors import InputError
from normtweak_core.reference.architectures import REFERENCE_NAMES

# Prefect, MLflow and torch make a million objects while they are imported, none of them garbage:
# looking for it at Python's own pace takes a fifth of that time.
COLLECTED_AFTER = (100_000, 20, 50)
NOT_BUILT = ("evaluate", "ablate", "sweep", "rebuild")

STATE = "All state is kept under NORMTWEAK_HOME, by default ./.normtweak."


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are `InputError`s, so that all bad input ends alike."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise InputError(f"{message}; see `{self.prog} --help`.")


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 failed, 2 bad input, 130 and 143 ended."""
    arguments = sys.argv[1:] if arguments is None else arguments
    gc.set_threshold(*COLLECTED_AFTER)
    command = arguments[0] if arguments and not arguments[0].startswith("-") else "normtweak"
    try:
        with sigterm_raises():
            options = parse(arguments)
            return options.run(options)
    except SystemExit:  # argparse, after --help and --version
        raise
    except BaseException as error:  # the one place where every command ends
        return exit_code(error, command)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options of a command; `run` is the function that carries it out.

    Raises:
        InputError: There is no such command or option, or the command is not built yet.
    """
    parser, names = build_parser()
    if not arguments:
        raise InputError("a command is needed, such as `normtweak quantize`; see normtweak --help.")
    first = arguments[0]
    if first in NOT_BUILT:
        raise InputError(f"normtweak {first} is not built yet; built are {', '.join(names)}.")
    if not first.startswith("-") and first not in names:
        near = difflib.get_close_matches(first, [*names, *NOT_BUILT], n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands are {', '.join(names)}."
        raise InputError(f"{first} is not a command; {hint}")
    return parser.parse_args(arguments)


def build_parser() -> tuple[Parser, list[str]]:
    """Return the parser of all commands, and their names."""
    version = importlib.metadata.version("normtweak")
    parser = Parser(
        prog="normtweak",
        description=__doc__,
        epilog="examples:\n  normtweak quantize conf/quickstart.yaml\n  normtweak ui\n\n"
        "exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 ended by SIGTERM\n"
        f"{STATE}\nnot built yet: {', '.join(NOT_BUILT)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"normtweak {version}")
    group = parser.add_subparsers(required=True, metavar="COMMAND", dest="command_name")
    _add_quantize(group)
    _add_ternary(group)
    _add_finetune(group)
    _add_promotion(group)
    _add_plan(group)
    _add_verify(group)
    _add_polynomial(group)
    _add_clean(group)
    _add_reference(group)
    _add_pages(group)
    return parser, list(group.choices)


def _command(
    group: argparse._SubParsersAction, name: str, summary: str, text: str, examples: list[str]
) -> argparse.ArgumentParser:
    shown = "\n".join(f"  normtweak {example}" for example in examples)
    return group.add_parser(
        name,
        help=summary,
        description=text,
        epilog=f"examples:\n{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", type=Path, metavar="RECIPE", help="YAML file; see conf/")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="change one key of the recipe, such as quantization.bits=3; may be repeated",
    )


def _add_result(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--result", type=Path, metavar="FILE.json", help="write metrics, paths and hashes here"
    )


def _add_quantize(group: argparse._SubParsersAction) -> None:
    command = _command(
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
    _add_recipe(command)
    _add_result(command)
    command.set_defaults(run=commands.run_quantize)


def _add_ternary(group: argparse._SubParsersAction) -> None:
    command = _command(
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
    _add_recipe(command)
    _add_result(command)
    command.set_defaults(run=commands.run_ternary)


def _add_finetune(group: argparse._SubParsersAction) -> None:
    command = _command(
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
    _add_recipe(command)
    _add_result(command)
    command.set_defaults(run=commands.run_finetune)


def _add_promotion(group: argparse._SubParsersAction) -> None:
    command = _command(
        group,
        "promote",
        "point an alias to a registered version, by hand",
        "Move an alias, whatever the gate has said. The moves of an alias are kept in the\n"
        f"registry.\n{STATE}",
        ["promote models:/my-model/3", "promote models:/my-model/3 --alias staging"],
    )
    command.add_argument("uri", metavar="models:/NAME/VERSION", help="the version")
    command.add_argument("--alias", default="champion", help="default: champion")
    command.set_defaults(run=commands.run_promote)
    command = _command(
        group,
        "rollback",
        "point an alias to the version it pointed to before",
        f"Take back the last move of an alias; once more goes one step further back.\n{STATE}",
        ["rollback my-model", "rollback my-model --alias candidate"],
    )
    command.add_argument("name", metavar="NAME", help="the registered model")
    command.add_argument("--alias", default="champion", help="default: champion")
    command.set_defaults(run=commands.run_rollback)


def _add_plan(group: argparse._SubParsersAction) -> None:
    command = _command(
        group,
        "plan",
        "say what quantize would need and find cached; write nothing",
        "Check a recipe as `quantize` would, and print disk, memory, time and finished stages.\n"
        "Nothing is written; a model of the hub must be in the local cache already.",
        ["plan conf/quickstart.yaml", "plan conf/quickstart.yaml --set calibration.samples=512"],
    )
    _add_recipe(command)
    command.set_defaults(run=commands.run_plan)


def _add_verify(group: argparse._SubParsersAction) -> None:
    command = _command(
        group,
        "verify",
        "reopen an export with an independent reader and compare",
        "Load an export in a fresh process that imports nothing of normtweak, and compare every\n"
        "weight bit for bit, and the logits, with what was quantized. Needs only the folder.",
        ["verify .normtweak/exports/llama-w2g64-0123456789ab"],
    )
    command.add_argument("export_dir", type=Path, metavar="EXPORT_DIR", help="folder of an export")
    command.set_defaults(run=commands.run_verify)


def _add_polynomial(group: argparse._SubParsersAction) -> None:
    command = _command(
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
    _add_recipe(command)
    _add_result(command)
    command.set_defaults(run=commands.run_polynomial)


def _add_clean(group: argparse._SubParsersAction) -> None:
    command = _command(
        group,
        "clean",
        "free disk: remove what no finished stage needs",
        "Remove streams between blocks, temporary files, and artefacts that no finished stage\n"
        "refers to. Exports, the registry and finished stages stay. Refused while a run is alive.",
        ["clean", "clean --all"],
    )
    command.add_argument(
        "--all",
        action="store_true",
        dest="everything",
        help="remove all finished stages, exports and logs too; registered versions keep their "
        "own copies and stay, as does Prefect's history",
    )
    command.set_defaults(run=commands.run_clean)


def _add_reference(group: argparse._SubParsersAction) -> None:
    command = _command(
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
        "--out", type=Path, metavar="DIR", help="folder of the model (default: in this package)"
    )
    train.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="folder of the resumable state (default: reference/NAME under NORMTWEAK_HOME)",
    )
    train.add_argument("--steps", type=int, metavar="N", help="optimizer steps")
    train.set_defaults(run=commands.run_reference_train)


def _either() -> str:
    return " or ".join(REFERENCE_NAMES)


def _add_pages(group: argparse._SubParsersAction) -> None:
    ui = _command(
        group,
        "ui",
        "Prefect and MLflow pages on this machine, with their links",
        "Start the Prefect server with its page and the MLflow page, and print where they are.",
        ["ui", "ui --prefect-port 4300 --mlflow-port 5100"],
    )
    _add_port(ui, "--prefect-port", "port of the Prefect page")
    _add_port(ui, "--mlflow-port", "port of the MLflow page")
    ui.set_defaults(run=commands.run_ui)
    serve = _command(
        group,
        "serve",
        "carry out the scheduled deployments of prefect.yaml",
        "Serve the deployments of prefect.yaml in this process until it is stopped.",
        ["serve", "serve --prefect-port 4300"],
    )
    _add_port(serve, "--prefect-port", "port of the Prefect page")
    serve.set_defaults(run=commands.run_serve)


def _add_port(command: argparse.ArgumentParser, flag: str, text: str) -> None:
    command.add_argument(
        flag, type=_port, metavar="PORT", help=f"{text} (default: the usual one or the next free)"
    )


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535; found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
