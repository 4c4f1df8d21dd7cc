"""What the parsers of several commands have in common."""

import argparse
from typing import Any

from normtweak_core.paths import given_path

STATE = "All state is kept under NORMTWEAK_HOME, by default ./.normtweak."


def add_command(
    group: argparse._SubParsersAction, name: str, summary: str, text: str, examples: list[str]
) -> argparse.ArgumentParser:
    """Add a command and return its parser; each example follows the name of the program."""
    shown = "\n".join(f"  normtweak {example}" for example in examples)
    return group.add_parser(
        name,
        help=summary,
        description=text,
        epilog=f"examples:\n{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


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


def add_recipe(command: argparse.ArgumentParser) -> None:
    """Take a recipe, and changes to it."""
    command.add_argument("recipe", action=GivenPath, metavar="RECIPE", help="YAML file; see conf/")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="change one key of the recipe, such as quantization.bits=3; may be repeated",
    )


def add_result(command: argparse.ArgumentParser) -> None:
    """Take a file to write the result to."""
    command.add_argument(
        "--result",
        action=GivenPath,
        metavar="FILE.json",
        help="write metrics, paths and hashes here",
    )
