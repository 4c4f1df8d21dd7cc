"""Which version an alias points to, why, and what it pointed to before.

Every move is one call to the registry, so that an alias points to the old version or to the new
one at any moment. The moves of an alias are kept in a tag of the registered model; a move whose
process was killed before it could be written down is written down by the next one.

Callers hold the lock of the name (`name_lock`): two runs at once decide one after the other.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from tasks.locks import exclusive

HISTORY = "history."  # and the alias: tag of a registered model
MOVES_KEPT = 40  # a tag holds 5000 characters
COMPARED, MEASURED_ON = "perplexity/quantized", "evaluation_inputs_sha256"
SIZE = "size_bytes"
SAME_SIZE = 1.01  # two exports of one width differ by their headers


@dataclass(frozen=True)
class Verdict:
    """What the gate says of an export, and which alias passing it may earn."""

    failures: tuple[str, ...] = ()
    promote_to: str | None = None

    @property
    def tags(self) -> dict[str, str]:
        """The verdict as tags of a version."""
        state = "failed" if self.failures else "passed"
        return {"gate": state, "gate.reasons": "; ".join(self.failures)[:4000] or "none"}


@contextlib.contextmanager
def name_lock(lock_dir: Path, name: str) -> Iterator[str]:
    """Hold the lock of a registered model's name; yield what files of that name begin with."""
    key = hashlib.sha256(name.encode()).hexdigest()[:16]
    with exclusive(lock_dir / f"registry-{key}.lock", message=f"registering {name}"):
        yield f"registry-{key}"


def settle_aliases(
    client: MlflowClient, version: ModelVersion, alias: str, verdict: Verdict
) -> str | None:
    """Move the aliases that a registered version has earned; return what became of its promotion.

    Args:
        client: Client of the registry.
        version: The version, with its tags.
        alias: What passing the gate earns.
        verdict: Of the gate.
    """
    if verdict.failures:
        return None
    move_alias(client, version.name, alias, int(version.version), "registration")
    if verdict.promote_to is None:
        return None
    decision, wins = compare_with_champion(client, version, verdict.promote_to)
    if wins:
        move_alias(client, version.name, verdict.promote_to, int(version.version), "gate")
    return decision


def compare_with_champion(
    client: MlflowClient, version: ModelVersion, alias: str
) -> tuple[str, bool]:
    """Return in words, and as a truth value, whether a version may take the champion's place.

    It may where it is not worse on the same evaluation and not larger.
    """
    present = client.get_registered_model(version.name).aliases.get(alias)
    if present is None:
        return f"{alias}: the first one", True
    if int(present) == int(version.version):
        return f"{alias}: already", False
    champion = client.get_model_version(version.name, str(present))
    named = f"version {present}"
    if champion.tags.get(MEASURED_ON) != version.tags.get(MEASURED_ON):
        return f"not {alias}: {named} was evaluated on something else; promote it by hand", False
    new, old = (float(one.tags[SIZE]) for one in (version, champion))
    if new > SAME_SIZE * old:
        return f"not {alias}: larger than {named} ({new:.0f} > {old:.0f} bytes)", False
    new, old = (float(one.tags[COMPARED]) for one in (version, champion))
    if not new <= old:
        return f"not {alias}: perplexity {new:.5g}, {named} has {old:.5g}", False
    return f"{alias}: perplexity {new:.5g}, {named} had {old:.5g}", True


def move_alias(client: MlflowClient, name: str, alias: str, to: int, by: str) -> bool:
    """Point an alias to a version and write the move down; return whether it pointed elsewhere.

    Args:
        client: Client of the registry.
        name: Registered model.
        alias: The alias.
        to: Version.
        by: What moved it: registration, gate, promote, rollback.
    """
    present, known = _standing(client, name, alias)
    moves = _reconciled(known, present)
    if present != to:
        client.set_registered_model_alias(name, alias, str(to))
        moves = [*moves, {"version": to, "by": by}]
    if moves != known:
        text = json.dumps(moves[-MOVES_KEPT:])
        client.set_registered_model_tag(name, f"{HISTORY}{alias}", text)
    return present != to


def history(client: MlflowClient, name: str, alias: str) -> list[dict[str, Any]]:
    """Return the moves of an alias, oldest first: version, and what moved it there."""
    return _standing(client, name, alias)[1]


def earlier_version(client: MlflowClient, name: str, alias: str) -> int | None:
    """Return the version that an alias pointed to before its present one; None: there is none.

    A version that was rolled back from does not count as before: two rollbacks go two steps back.
    """
    present, known = _standing(client, name, alias)
    stack: list[int] = []
    for move in _reconciled(known, present):
        if move["by"] == "rollback":
            while stack and stack[-1] != move["version"]:
                stack.pop()
        if not stack or stack[-1] != move["version"]:
            stack.append(move["version"])
    return stack[-2] if len(stack) > 1 else None


def _standing(
    client: MlflowClient, name: str, alias: str
) -> tuple[int | None, list[dict[str, Any]]]:
    """Return where an alias is, and the moves that are written down, of one answer."""
    model = client.get_registered_model(name)
    present = model.aliases.get(alias)
    moves = json.loads(model.tags.get(f"{HISTORY}{alias}", "[]"))
    return None if present is None else int(present), moves


def _reconciled(moves: list[dict[str, Any]], present: int | None) -> list[dict[str, Any]]:
    """Return the moves with one for where the alias is, where nobody has written that down."""
    if present is None or (moves and moves[-1]["version"] == present):
        return moves
    return [*moves, {"version": present, "by": "unknown"}]
