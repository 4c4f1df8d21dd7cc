"""`normtweak verify`: an export, reopened by a reader that has none of our code."""

import argparse

from flows.commands.command import Command, GivenPath
from flows.commands.execution import logged, print_line
from flows.commands.failures import EXIT_OK
from flows.commands.first_line import first_line
from flows.reports.terminal import verification_lines
from normtweak_core.export.verification.verify import reader_python, verify_export
from tasks.engine.environment import REPOSITORY


def run_verify(options: argparse.Namespace) -> int:
    """Reopen an export with an independent reader and print what was compared."""
    with first_line(f"verify {options.export_dir}: opened by a reader without our code"):
        reader = reader_python(options.export_dir, REPOSITORY)

    def work() -> int:
        found = verify_export(options.export_dir, reader, options.timeout)
        for line in verification_lines(options.export_dir, found):
            print_line(line)
        return EXIT_OK

    return logged("verify", work, terminal=False)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "export_dir", action=GivenPath, metavar="EXPORT_DIR", help="folder of an export"
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="how long the reader may take; default: by the size of the export",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0; found {text!r}")
    return seconds


COMMANDS = {
    "verify": Command(
        "Load an export in a fresh process that imports nothing of normtweak, and compare every\n"
        "weight bit for bit, and the logits, with what was quantized. Needs only the folder.",
        ["verify .normtweak/exports/llama-w2g64-0123456789ab"],
        _add_arguments,
        run_verify,
    )
}
