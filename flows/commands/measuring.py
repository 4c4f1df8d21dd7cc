"""`normtweak evaluate` and `normtweak compare`: any models, measured on a text and on tasks."""

import argparse

from flows.checks.evaluation import check_request
from flows.checks.services import check_services
from flows.commands.command import STATE, Command, add_result
from flows.commands.execution import quiet_libraries, run_flow
from flows.commands.first_line import first_line
from flows.recipes.evaluation import EvaluationRequest
from normtweak_core.errors import InputError
from normtweak_core.lazy import lazy
from tasks.engine.environment import set_variables, state_root

terminal = lazy("flows.reports.terminal")

MODEL = "folder, hub id, reference:NAME, models:/NAME/VERSION, models:/NAME@ALIAS or GGUF file"


def run_evaluate(options: argparse.Namespace) -> int:
    """Measure a model and print what was found."""
    return _measure("evaluate", [options.model], options)


def run_compare(options: argparse.Namespace) -> int:
    """Measure several models on the same tokens and print what was found."""
    if len(options.models) < 2:
        raise InputError(
            f"compare takes two models or more; found {options.models[0]} alone: name another, or "
            "use normtweak evaluate."
        )
    return _measure("compare", options.models, options)


def _measure(command: str, models: list[str], options: argparse.Namespace) -> int:
    text = {"path": options.text, "length": options.length, "max_tokens": options.max_tokens}
    tasks = options.tasks.split(",") if options.tasks else []
    request = EvaluationRequest.parse(
        {
            "models": models,
            "against": options.against,
            "evaluation": {
                "perplexity": text,
                "tasks": tasks,
                "data": options.data,
                "max_items": options.max_items,
            },
            "dtype": options.dtype,
            "device": options.device,
        }
    )
    quiet_libraries()
    set_variables(state_root())
    with first_line(f"{command} {' and '.join(models)}: begins"):
        check_request(request, state_root(), options.result)
        given = [*models, *([options.against] if options.against else [])]
        check_services(state_root(), registry=any(name.startswith("models:") for name in given))
    return run_flow(
        command,
        lambda: getattr(lazy(f"flows.{command}"), command)(request),
        options.result,
        lambda result: terminal.show(command, result),
    )


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--against", metavar="FLOAT_MODEL", help="the float model it was made from")
    _add_measuring(parser)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL", nargs="+", help=MODEL)
    _add_measuring(parser)
    parser.set_defaults(against=None)


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text", metavar="FILE", help=".txt or .jsonl (default: a reference model's)"
    )
    parser.add_argument("--length", type=int, metavar="N", help="tokens per window")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="stop the text after so many")
    parser.add_argument("--tasks", metavar="A,B", help="tasks of lm-eval, such as piqa,boolq")
    parser.add_argument("--data", metavar="DIR", help="their items, as TASK/*.jsonl (default: hub)")
    parser.add_argument("--max-items", type=int, metavar="N", help="only so many of each task")
    own = "a quantized model's own, else float32"
    parser.add_argument("--dtype", default="auto", help=f"float type (default: {own})")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_result(parser)


COMMANDS = {
    "evaluate": Command(
        "Measure a model, float or quantized, ours or not: perplexity on a text and accuracy on\n"
        "tasks of lm-eval. With --against, on the same tokens and items beside its float model:\n"
        f"divergence both ways, agreement, paired differences. What was measured is kept.\n{STATE}",
        [
            "evaluate reference:llama",
            "evaluate EXPORT_DIR --against reference:llama",
            "evaluate models:/quickstart@candidate --tasks piqa,boolq --data ITEMS_DIR",
        ],
        _add_evaluate,
        run_evaluate,
    ),
    "compare": Command(
        "Measure models as `evaluate` does, all on the same tokens and items, and tell for each\n"
        f"pair whether they differ by more than chance. They must share a tokenizer.\n{STATE}",
        [
            "compare models:/quickstart/1 models:/quickstart/2",
            "compare reference:llama EXPORT_DIR models:/NAME@champion --tasks piqa --data DIR",
        ],
        _add_compare,
        run_compare,
    ),
}
