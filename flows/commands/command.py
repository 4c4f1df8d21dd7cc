"""What a command is, and what the parsers of several have in common."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from normtweak_core.paths import given_path

STATE = "All state is kept under NORMTWEAK_HOME, by default ./.normtweak."


@dataclass(frozen=True)
class Command:
    """What a command says of itself, takes, and does."""

    text: str
    examples: Sequence[str]  # each follows the name of the program
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]  # returns the exit code

    def describe(self, parser: argparse.ArgumentParser) -> None:
        """Make an empty parser that of this command."""
        shown = "\n".join(f"  normtweak {example}" for example in self.examples)
        parser.description = self.text
        parser.epilog = f"examples:\n{shown}"
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        self.add_arguments(parser)
        parser.set_defaults(run=self.run)


class GivenPath(argparse.Action):
    """An argument that is a path; what is no path is refused by the name of the argument."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Keep the path."""
        setattr(namespace, self.dest, given_path(values, option_string or str(self.metavar)))


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Take a recipe, and changes to it."""
    parser.add_argument("recipe", action=GivenPath, metavar="RECIPE", help="YAML file; see conf/")
    add_overrides(parser, "KEY=VALUE", "change one key of the recipe, such as quantization.bits=3")


def add_overrides(parser: argparse.ArgumentParser, metavar: str, meaning: str) -> None:
    """Take changes to a recipe."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar=metavar,
        help=f"{meaning}; may be repeated",
    )


def add_result(parser: argparse.ArgumentParser) -> None:
    """Take a file to write the result to."""
    parser.add_argument(
        "--result",
        action=GivenPath,
        metavar="FILE.json",
        help="write metrics, paths and hashes here",
    )
