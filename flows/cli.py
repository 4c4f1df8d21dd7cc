"""The command line. Nothing heavy is imported before the arguments and the recipe are known good."""

import argparse
import json
import logging
import sys
from pathlib import Path

from normtweak_core.errors import InputError

log = logging.getLogger(__name__)

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 failed, 2 bad input."""
    options = build_parser().parse_args(arguments)
    try:
        return options.command(options)
    except InputError as error:
        print(f"normtweak: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_BAD_INPUT


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="normtweak", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    quantize = commands.add_parser("quantize", help="quantize, verify, evaluate, register")
    quantize.add_argument("recipe", type=Path)
    quantize.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="set_")
    quantize.add_argument("--result", type=Path, metavar="FILE.json")
    quantize.set_defaults(command=run_quantize)
    return parser


def run_quantize(options: argparse.Namespace) -> int:
    """Quantize the model of a recipe."""
    from flows.params import load_recipe

    recipe = load_recipe(options.recipe, options.set_)
    from tasks.artifacts import sweep_temporaries
    from tasks.environment import log_plain_lines, prepare_environment

    root = prepare_environment()
    log_plain_lines()
    sweep_temporaries(root)
    from tasks.server import api_for_this_run

    with api_for_this_run(root):
        from flows.quantize import quantize
        from tasks.runs import mark_dead_runs, own_flow_runs

        mark_dead_runs(root)
        with own_flow_runs(root):
            result = quantize(recipe)
    if options.result:
        options.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["metrics"], indent=1), result["export_dir"], result["registered"])  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
