"""A registered version made again from what the registry says about it; brings Prefect and MLflow.

Everything is computed anew, in a state root of its own below the usual one. A rebuild that was
killed goes on from its own finished stages; one that has ended is not looked at again. The registry
is only read.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from flows.checks.preflight import preflight
from flows.commands.execution import print_line, run_flow
from flows.commands.failures import EXIT_FAILED, EXIT_OK, say
from flows.rebuild import rebuild
from flows.rebuilding.inputs import Inputs, find_inputs
from flows.rebuilding.recorded import Recorded, read_recorded
from normtweak_core.errors import InputError
from normtweak_core.scratch import scratch_folder
from tasks.engine.environment import FOLDERS, HOME_VARIABLE, REBUILDS
from tasks.engine.locks import exclusive
from tasks.engine.provenance import Difference, differences, made_here
from tasks.registry.reachable import VARIABLE
from tasks.registry.registered import registry_client

THREADS = "OMP_NUM_THREADS"
ENDED = "ended.json"  # in the state root of a rebuild that gave another export
SHOWN = 20  # differences printed; the result file holds all


def make_again(
    uri: str, overrides: list[str], root: Path, result_file: Path | None, threads: str | None
) -> int:
    """Rebuild a version, print what differs from its record, and return 0 where the bytes do not.

    Args:
        uri: models:/NAME/VERSION or models:/NAME@ALIAS.
        overrides: KEY=PATH: where a model or text lies now.
        root: The state root, made.
        result_file: Where the result shall go, if anywhere.
        threads: What the user has set of them, if anything; else they are those recorded.

    Raises:
        InputError: There is no such version, its record is not whole, or what it was made from is
            not to be had or is something else by now.
    """
    client = registry_client(os.environ[VARIABLE])
    with scratch_folder("rebuild") as folder:
        recorded = read_recorded(client, uri, folder)
    if threads is None:  # else what the user has set wins, and is told as a difference
        os.environ[THREADS] = str(recorded.made_with.threads)
    name = f"{recorded.version.name}-{recorded.version.version}-{recorded.identity()[:12]}"
    lock = root / "locks" / f"rebuild-{name}.lock"
    with exclusive(lock, timeout=0, message=f"the rebuild of {recorded.uri}"):
        return _rebuild(recorded, overrides, client, root / REBUILDS / name, result_file)


def _rebuild(
    recorded: Recorded,
    overrides: list[str],
    client: MlflowClient,
    home: Path,
    result_file: Path | None,
) -> int:
    with _own_state(home):
        inputs = find_inputs(recorded, overrides, client, home / "parent")
        here = made_here(inputs.job, recorded.made_with)
        found = differences(recorded.made_with, here)
        ready = preflight(inputs.recipe, home, result_file, evaluates=False)
        if ready.is_local:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        for line in _about(recorded, found):
            print_line(line)
        for warning in ready.warnings:
            print_line(f"warning {warning}")

        def flow() -> dict[str, Any]:
            return _outcome(recorded, found, _run(recorded, inputs, home))

        def show(result: dict[str, Any]) -> int:
            return _show(recorded, result, home)

        return run_flow("rebuild", flow, result_file, show)


@contextlib.contextmanager
def _own_state(home: Path) -> Iterator[None]:
    """Make the state root of a rebuild, without anything that an ended one has left there."""
    if (home / ENDED).exists():
        shutil.rmtree(home)
    is_new = not home.exists()
    for folder in FOLDERS:
        (home / folder).mkdir(parents=True, exist_ok=True)
    try:
        yield
    except InputError:  # nothing was computed
        if is_new:
            shutil.rmtree(home)
        raise


def _run(recorded: Recorded, inputs: Inputs, home: Path) -> dict[str, Any]:
    before = os.environ[HOME_VARIABLE]
    os.environ[HOME_VARIABLE] = str(home)
    try:
        # Prefect has read where results go when it was imported: another place has to be said.
        here = rebuild.with_options(result_storage=home / "results")
        return here(recorded.uri, inputs.recipe, inputs.revisions, recorded.float_type)
    finally:
        os.environ[HOME_VARIABLE] = before


def _outcome(recorded: Recorded, found: list[Difference], made: dict[str, Any]) -> dict[str, Any]:
    wanted = recorded.tag("calibration_sha256")
    if made["calibration_sha256"] != wanted:
        calibration = made["calibration_sha256"]
        found = [*found, Difference(fact="calibration set", recorded=wanted, here=calibration)]
    is_equal = made["export_sha256"] == recorded.export_sha256
    return {
        "version": recorded.uri,
        "equal": is_equal,
        "recorded": {
            "export_sha256": recorded.export_sha256,
            "calibration_sha256": wanted,
            "source_sha256": recorded.tag("source_sha256"),
            "code_commit": recorded.made_with.commit,
        },
        "differences": [one.model_dump() for one in found],
        **made,
        "export_dir": None if is_equal else made["export_dir"],
    }


def _about(recorded: Recorded, found: list[Difference]) -> list[str]:
    """Return what is said before anything is computed."""
    made = recorded.made_with
    lines = [
        f"{recorded.uri}: normtweak {recorded.kind.name} of {recorded.tag('source_model')}",
        f"source model: {recorded.tag('source_sha256')}, as recorded",
    ]
    if not found:
        threads = f"{made.threads} thread{'s' if made.threads > 1 else ''}"
        lines.append(
            f"environment: as recorded (Python {made.python}, {len(made.packages)} packages, "
            f"{made.device}, {threads}, {len(made.sources)} modules of the core, commit "
            f"{made.commit or 'unknown'})"
        )
        return lines
    lines += [f"differs: {one}" for one in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"differs: {len(found) - SHOWN} more facts, all in the file of --result")
    if not any(one.fact.startswith("code ") for one in found):
        lines.append(f"code of the core: as recorded, in {len(made.sources)} modules")
    return lines


def _show(recorded: Recorded, result: dict[str, Any], home: Path) -> int:
    """Print what came of a rebuild, remove what nobody needs, and return the exit code."""
    wanted, found = recorded.export_sha256, result["export_sha256"]
    calibration = recorded.tag("calibration_sha256")
    if result["calibration_sha256"] == calibration:
        print_line(f"calibration set: {calibration}, as recorded")
    else:
        print_line(
            f"calibration set: {calibration} recorded, {result['calibration_sha256']} rebuilt"
        )
    if result["equal"]:
        print_line(f"export: {wanted}, as recorded: every byte is the same")
        shutil.rmtree(home)
        return EXIT_OK
    print_line(f"export: {wanted} recorded, {found} rebuilt")
    (home / ENDED).write_text("{}")
    facts = [one["fact"] for one in result["differences"]]
    shown = ", ".join(facts[:SHOWN]) + (f" and {len(facts) - SHOWN} more" * (len(facts) > SHOWN))
    say(
        f"the rebuild of {recorded.uri} is another export than the one registered; what differs "
        f"from its record: {shown or 'nothing that is recorded'}. It lies in "
        f"{result['export_dir']}, until normtweak clean."
    )
    return EXIT_FAILED
