"""Quantize a language model, prove that the result opens elsewhere, and register it."""

# Nothing heavy is imported here: bad input is answered before torch, Prefect or MLflow load.

import argparse
import atexit
import difflib
import gc
import importlib
import importlib.metadata
import os
import sys
from typing import NoReturn

from flows.commands.command import STATE, Command
from flows.commands.failures import exit_code, sigterm_raises
from normtweak_core.errors import InputError
from tasks.server.ending import process_is_a_command

# Module under flows.commands, which is imported when its command is given, and summary.
COMMANDS = {
    "quantize": ("recipes", "quantize, verify, evaluate and register a model"),
    "ternary": ("recipes", "train a model until its weights are ternary; verify and register it"),
    "finetune": (
        "recipes",
        "train an export of quantize on, on its own grid; verify and register it",
    ),
    "plan": ("plan", "say what a run would need and find cached; write nothing"),
    "polynomial": ("recipes", "study quantization-aware training on a small network"),
    "ablate": ("recipes", "vary one factor of a recipe at a time and compare what comes of it"),
    "evaluate": ("measuring", "measure any model on a text and on named tasks"),
    "compare": ("measuring", "measure several models on the same tokens, in pairs"),
    "verify": ("verify", "reopen an export with an independent reader and compare"),
    "sign": ("verify", "sign an export or a version with a key"),
    "promote": ("registry", "point an alias to a registered version, by hand"),
    "rollback": ("registry", "point an alias to the version it pointed to before"),
    "register": ("registry", "register finished models that wait for the registry"),
    "push": ("registry", "write an export to a repository of Hugging Face's hub"),
    "rebuild": ("rebuild", "make a registered version again and compare the bytes"),
    "status": ("clean", "tell what works here, what waits, who holds locks, and the disk"),
    "clean": ("clean", "free disk: remove what no finished stage needs"),
    "reference": ("reference", "train a built-in reference model"),
    "ui": ("serving", "Prefect and MLflow pages on this machine, with their links"),
    "serve": ("serving", "carry out the scheduled deployments of prefect.yaml"),
}
# Prefect, MLflow and torch make a million objects while they are imported, none of them garbage:
# looking for it at Python's own pace takes a fifth of that time.
COLLECTED_AFTER = (100_000, 20, 50)
NOT_BUILT = ("sweep",)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are `InputError`s, so that all bad input ends alike."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise InputError(f"{message}; see `{self.prog} --help`.")


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 failed, 2 bad input, 130 and 143 ended."""
    arguments = sys.argv[1:] if arguments is None else arguments
    gc.set_threshold(*COLLECTED_AFTER)
    # At exit Python looks through all of them once more, for a second and a half.
    atexit.register(gc.freeze)
    command = arguments[0] if arguments and not arguments[0].startswith("-") else "normtweak"
    try:
        with sigterm_raises():
            options = parse(arguments)
            _require_one_process()
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
    if not arguments:
        raise InputError("a command is needed, such as `normtweak quantize`; see normtweak --help.")
    first = arguments[0]
    if first in NOT_BUILT:
        raise InputError(f"normtweak {first} is not built yet; built are {', '.join(COMMANDS)}.")
    if not first.startswith("-") and first not in COMMANDS:
        near = difflib.get_close_matches(first, [*COMMANDS, *NOT_BUILT], n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands are {', '.join(COMMANDS)}."
        raise InputError(f"{first} is not a command; {hint}")
    return build_parser(first).parse_args(arguments)


def _require_one_process() -> None:
    """Refuse to run once for each process of a launcher: all of them would do the same work.

    Raises:
        InputError: A launcher has started this process with others.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if "RANK" in os.environ and processes != "1":
        raise InputError(
            f"a command runs in one process; a launcher has started {processes}: start it without "
            "one. In several processes runs normtweak_core.training.trainer, as a library."
        )


def build_parser(given: str) -> Parser:
    """Return the parser of the command that is given; of the others it knows the summaries."""
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
    for name, (module, summary) in COMMANDS.items():
        added = group.add_parser(name, help=summary)
        if name == given:
            command: Command = importlib.import_module(f"flows.commands.{module}").COMMANDS[name]
            command.describe(added)
    return parser


if __name__ == "__main__":
    process_is_a_command()
    sys.exit(main())
