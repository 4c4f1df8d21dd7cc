"""The parsers of the commands on models that are there: exports and registered versions."""

import argparse

from flows.commands import bodies as commands
from flows.commands.options import STATE, GivenPath, add_command, add_result


def add_model_commands(group: argparse._SubParsersAction) -> None:
    """Add evaluate, compare, verify, promote, rollback and rebuild."""
    _add_evaluate(group)
    _add_compare(group)
    _add_verify(group)
    _add_promotion(group)
    _add_rebuild(group)


MODEL = "folder, hub id, reference:NAME, models:/NAME/VERSION, models:/NAME@ALIAS or GGUF file"


def _add_evaluate(group: argparse._SubParsersAction) -> None:
    command = add_command(
        group,
        "evaluate",
        "measure any model on a text and on named tasks",
        "Measure a model, float or quantized, ours or not: perplexity on a text and accuracy on\n"
        "tasks of lm-eval. With --against, on the same tokens and items beside its float model:\n"
        f"divergence both ways, agreement, paired differences. What was measured is kept.\n{STATE}",
        [
            "evaluate reference:llama",
            "evaluate EXPORT_DIR --against reference:llama",
            "evaluate models:/quickstart@candidate --tasks piqa,boolq --data ITEMS_DIR",
        ],
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument(
        "--against", metavar="FLOAT_MODEL", help="the float model it was made from"
    )
    _add_measuring(command)
    command.set_defaults(run=commands.run_evaluate)


def _add_compare(group: argparse._SubParsersAction) -> None:
    command = add_command(
        group,
        "compare",
        "measure several models on the same tokens, in pairs",
        "Measure models as `evaluate` does, all on the same tokens and items, and tell for each\n"
        f"pair whether they differ by more than chance. They must share a tokenizer.\n{STATE}",
        [
            "compare models:/quickstart/1 models:/quickstart/2",
            "compare reference:llama EXPORT_DIR models:/NAME@champion --tasks piqa --data DIR",
        ],
    )
    command.add_argument("models", metavar="MODEL", nargs="+", help=MODEL)
    _add_measuring(command)
    command.set_defaults(run=commands.run_compare, against=None)


def _add_measuring(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--text", metavar="FILE", help=".txt or .jsonl (default: a reference model's)"
    )
    command.add_argument("--length", type=int, metavar="N", help="tokens per window")
    command.add_argument("--max-tokens", type=int, metavar="N", help="stop the text after so many")
    command.add_argument("--tasks", metavar="A,B", help="tasks of lm-eval, such as piqa,boolq")
    command.add_argument(
        "--data", metavar="DIR", help="their items, as TASK/*.jsonl (default: hub)"
    )
    command.add_argument("--max-items", type=int, metavar="N", help="only so many of each task")
    own = "a quantized model's own, else float32"
    command.add_argument("--dtype", default="auto", help=f"float type (default: {own})")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_result(command)


def _add_verify(group: argparse._SubParsersAction) -> None:
    command = add_command(
        group,
        "verify",
        "reopen an export with an independent reader and compare",
        "Load an export in a fresh process that imports nothing of normtweak, and compare every\n"
        "weight bit for bit, and the logits, with what was quantized. Needs only the folder.",
        ["verify .normtweak/exports/llama-w2g64-0123456789ab"],
    )
    command.add_argument(
        "export_dir", action=GivenPath, metavar="EXPORT_DIR", help="folder of an export"
    )
    command.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="how long the reader may take; default: by the size of the export",
    )
    command.set_defaults(run=commands.run_verify)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0; found {text!r}")
    return seconds


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


def _add_rebuild(group: argparse._SubParsersAction) -> None:
    command = add_command(
        group,
        "rebuild",
        "make a registered version again and compare the bytes",
        "Find recipe, model, text and code of a version in the registry, say where this machine\n"
        "differs from the recorded one, compute everything anew, and compare the export with the\n"
        "registered one: exit code 0 where it is the same, 1 where not. Registers nothing.\n"
        f"{STATE}",
        [
            "rebuild models:/quickstart-llama-w2g64/1",
            "rebuild models:/my-model@champion --set model.source=/where/it/is/now",
        ],
    )
    command.add_argument(
        "uri", metavar="models:/NAME/VERSION", help="the version, or models:/NAME@ALIAS"
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=PATH",
        help="where a model or text of the recipe lies now, such as model.source; may be repeated",
    )
    add_result(command)
    command.set_defaults(run=commands.run_rebuild)
