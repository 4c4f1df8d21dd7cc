"""The parsers of the commands on models that are there: exports and registered versions."""

import argparse
from pathlib import Path

from flows import commands
from flows.cli_options import STATE, add_command


def add_model_commands(group: argparse._SubParsersAction) -> None:
    """Add verify, promote and rollback."""
    _add_verify(group)
    _add_promotion(group)


def _add_verify(group: argparse._SubParsersAction) -> None:
    command = add_command(
        group,
        "verify",
        "reopen an export with an independent reader and compare",
        "Load an export in a fresh process that imports nothing of normtweak, and compare every\n"
        "weight bit for bit, and the logits, with what was quantized. Needs only the folder.",
        ["verify .normtweak/exports/llama-w2g64-0123456789ab"],
    )
    command.add_argument("export_dir", type=Path, metavar="EXPORT_DIR", help="folder of an export")
    command.set_defaults(run=commands.run_verify)


def _add_promotion(group: argparse._SubParsersAction) -> None:
    command = add_command(
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
    command = add_command(
        group,
        "rollback",
        "point an alias to the version it pointed to before",
        f"Take back the last move of an alias; once more goes one step further back.\n{STATE}",
        ["rollback my-model", "rollback my-model --alias candidate"],
    )
    command.add_argument("name", metavar="NAME", help="the registered model")
    command.add_argument("--alias", default="champion", help="default: champion")
    command.set_defaults(run=commands.run_rollback)
