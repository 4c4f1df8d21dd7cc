"""Work on the registry by hand: `normtweak promote`, `rollback`, `register` and `push`."""

import argparse
import os
from pathlib import Path

from flows.checks.services import check_services
from flows.commands.command import STATE, Command
from flows.commands.execution import logged, of_export, print_line
from flows.commands.failures import EXIT_FAILED, EXIT_OK, say
from normtweak_core.lazy import lazy
from tasks.engine.cleaning import in_use
from tasks.engine.environment import prepare_environment, set_variables, state_root
from tasks.registry.names import parse_address, require_names
from tasks.registry.reachable import VARIABLE

by_hand = lazy("tasks.registry.by_hand")  # with MLflow
pushing = lazy("tasks.registry.pushing")
waiting = lazy("tasks.registry.waiting")

NAMED = ("NAME", "--alias")  # what the person calls both


def run_promote(options: argparse.Namespace) -> int:
    """Point an alias to a version and print what changed."""
    address = parse_address(options.uri, alias_too=False)
    require_names(address.name, options.alias, NAMED)
    uri, locks = _registry()
    print_line(by_hand.promote(uri, locks, address, options.alias))
    return EXIT_OK


def run_rollback(options: argparse.Namespace) -> int:
    """Point an alias to the version it pointed to before, and print what changed."""
    require_names(options.name, options.alias, NAMED)
    uri, locks = _registry()
    print_line(by_hand.rollback(uri, locks, options.name, options.alias))
    return EXIT_OK


def run_register(options: argparse.Namespace) -> int:
    """Register what waits and print what became of each."""
    uri, _ = _registry()
    root, code = state_root(), EXIT_OK
    with in_use(root):
        models = waiting.all_waiting(root)
        if not models:
            print_line(f"nothing under {root} waits to be registered")
        for model in models:
            try:
                found = waiting.register(root, model, uri)
            except waiting.NotRegisteredError as error:
                say(f"{model}: {error.summary}.")
                code = EXIT_FAILED
            else:
                aliases = f" ({', '.join(found.aliases)})" if found.aliases else ""
                print_line(f"registered {found.model_uri}{aliases}")
    return code


def run_push(options: argparse.Namespace) -> int:
    """Push an export, or that of a version, and print where it stands."""
    more = options.repo, options.public, options.revision

    def work() -> int:
        commit = of_export(
            options.export,
            "push",
            lambda folder: pushing.push_export(folder, *more),
            lambda uri, address: pushing.push_version(uri, address, *more),
        )
        print_line(f"pushed {options.export}: {commit}")
        return EXIT_OK

    return logged("push", work, terminal=False)


def _registry() -> tuple[str, Path]:
    """Return address and locks of a registry that answers."""
    set_variables(state_root())
    check_services(state_root(), engine=False)
    return os.environ[VARIABLE], prepare_environment() / "locks"


def _add_promote(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", metavar="models:/NAME/VERSION", help="the version")
    parser.add_argument("--alias", default="champion", help="default: champion")


def _add_rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the registered model")
    parser.add_argument("--alias", default="champion", help="default: champion")


def _add_register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pending", action="store_true", required=True, help="all that waits")


def _add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("export", metavar="EXPORT", help="folder, or models:/NAME/VERSION")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="of the hub")
    parser.add_argument(
        "--public", action="store_true", help="let anybody read a repository that is made now"
    )
    parser.add_argument("--revision", metavar="BRANCH", help="default: main")


COMMANDS = {
    "promote": Command(
        "Move an alias, whatever the gate has said. The moves of an alias are kept in the\n"
        f"registry.\n{STATE}",
        ["promote models:/my-model/3", "promote models:/my-model/3 --alias staging"],
        _add_promote,
        run_promote,
    ),
    "rollback": Command(
        f"Take back the last move of an alias; once more goes one step further back.\n{STATE}",
        ["rollback my-model", "rollback my-model --alias candidate"],
        _add_rollback,
        run_rollback,
    ),
    "register": Command(
        "Register finished models that the registry has not taken, since it did not answer or the\n"
        "run was killed at that moment. A model is registered once however often it is asked.\n"
        f"The next run on the same registry does so as well.\n{STATE}",
        ["register --pending"],
        _add_register,
        run_register,
    ),
    "push": Command(
        "Write an export, or that of a version, to a repository of Hugging Face's hub: card,\n"
        "terms, manifest and signature with it. A new repository is private. Nothing else pushes.",
        [
            "push .normtweak/exports/llama-w2g64-0123456789ab --repo me/llama-w2g64",
            "push models:/quickstart-llama-w2g64/1 --repo me/llama-w2g64 --public",
        ],
        _add_push,
        run_push,
    ),
}
