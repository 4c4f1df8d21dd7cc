"""`normtweak clean`: disk is freed of what no finished stage needs."""

import argparse

from flows.commands.command import Command
from flows.commands.execution import print_line
from flows.commands.failures import EXIT_OK
from tasks.engine.cleaning import clean
from tasks.engine.environment import state_root
from tasks.engine.progress import readable_bytes


def run_clean(options: argparse.Namespace) -> int:
    """Remove what can be made again and print what that was."""
    root = state_root()
    removed = clean(root, options.everything)
    for one in removed:
        if one.files:
            noun = "file" if one.files == 1 else "files"
            print_line(f"{one.kind}: {one.files} {noun}, {readable_bytes(one.size)}")
    total = sum(one.size for one in removed)
    print_line(f"removed {total} bytes ({readable_bytes(total)}) under {root}")
    return EXIT_OK


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all",
        action="store_true",
        dest="everything",
        help="remove all that is made again: finished stages, exports, evaluations, studies, "
        "unfinished trainings, logs and the event file too; registered versions keep their own "
        "copies and stay, as does Prefect's history",
    )


COMMANDS = {
    "clean": Command(
        "Remove streams between blocks, temporary files, what rebuilds have left, and artefacts\n"
        "that no finished stage refers to. Exports, the registry and finished stages stay.\n"
        "Refused while a run is alive.",
        ["clean", "clean --all"],
        _add_arguments,
        run_clean,
    )
}
