"""Which version an alias points to, why, and what it pointed to before.

Every move is one call to the registry, so that an alias points to the old version or to the new
one at any moment. The moves of an alias are kept in a tag of the registered model; a move whose
process was killed before it could be written down is written down by the next one.

Callers hold the lock of the name (`name_lock`): two runs at once decide one after the other.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from tasks.engine.locks import exclusive
from tasks.registry.window_losses import differences, stored_losses, too_few

HISTORY = "history."  # and the alias: tag of a registered model
MOVES_KEPT = 40  # a tag holds 5000 characters
PERPLEXITY, KL = "perplexity/quantized", "kl/mean"
MEASURED_ON, MADE_FROM, SIZE = "evaluation_inputs_sha256", "source_sha256", "size_bytes"
BY_HAND = "promote it by hand"
SAME_SIZE = 1.01  # two exports of one width differ by their headers


@dataclass(frozen=True)
class Verdict:
    """What the gate says of an export, and which alias passing it may earn."""

    failures: tuple[str, ...] = ()
    promote_to: str | None = None
    asked: bool = False  # the recipe sets a threshold
    confidence: float = 0.95  # of being no worse than the champion

    @property
    def tags(self) -> dict[str, str]:
        """The verdict as tags of a version."""
        if not self.asked:
            return {"gate": "none", "gate.reasons": "the recipe sets no threshold"}
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
    """Move the aliases that a version has earned; return what became of its promotion."""
    if verdict.failures:
        return None
    move_alias(client, version.name, alias, int(version.version), "registration")
    if verdict.promote_to is None:
        return None
    decision, wins = compare_with_champion(client, version, verdict.promote_to, verdict.confidence)
    if wins:
        move_alias(client, version.name, verdict.promote_to, int(version.version), "gate")
    return decision


def compare_with_champion(
    client: MlflowClient, version: ModelVersion, alias: str, confidence: float
) -> tuple[str, bool]:
    """Return in words, and as a truth value, whether a version may take the champion's place.

    It may where it is not larger, and where the losses and the divergences of the two, paired by
    window, show with confidence that it is not worse in either. A tie keeps the present champion.

    Args:
        client: Client of the registry.
        version: The version, with its tags.
        alias: What the champion is called.
        confidence: One-sided, for each of the two.
    """
    if not _is_measured(version):
        return f"not {alias}: its perplexity or divergence is not a finite number", False
    present = client.get_registered_model(version.name).aliases.get(alias)
    if present is None:
        return f"{alias}: the first one", True
    if int(present) == int(version.version):
        return f"{alias}: already", False
    champion = client.get_model_version(version.name, str(present))
    named = f"version {present}"
    if champion.tags.get(MADE_FROM) != version.tags.get(MADE_FROM):
        return f"not {alias}: {named} was made from another model; {BY_HAND}", False
    if champion.tags.get(MEASURED_ON) != version.tags.get(MEASURED_ON):
        return f"not {alias}: {named} was evaluated on something else; {BY_HAND}", False
    if not _is_measured(champion):
        return f"{alias}: the perplexity or divergence of {named} is not a finite number", True
    new, old = (float(one.tags[SIZE]) for one in (version, champion))
    if new > SAME_SIZE * old:
        return f"not {alias}: larger than {named} ({new:.0f} > {old:.0f} bytes)", False
    words, wins = _compare_losses(client, version, champion, confidence)
    if wins:
        return f"{alias}: {words}", True
    smaller = f"; smaller ({new:.0f} < {old:.0f} bytes): {BY_HAND}" if old > SAME_SIZE * new else ""
    return f"not {alias}: {words}{smaller}", False


def _is_measured(version: ModelVersion) -> bool:
    """Return whether the numbers of a version are numbers."""
    found = [float(version.tags[name]) for name in (PERPLEXITY, KL) if name in version.tags]
    return bool(found) and all(map(math.isfinite, found))


def _compare_losses(
    client: MlflowClient, version: ModelVersion, champion: ModelVersion, confidence: float
) -> tuple[str, bool]:
    """Return what the windows of two versions of one evaluation say, and whether the first wins."""
    kept = [
        (one, stored_losses(client, one, one.tags.get(MEASURED_ON, "")))
        for one in (version, champion)
    ]
    for one, losses in kept:
        if losses is None:
            return (
                f"version {one.version} keeps no losses by window, which are compared; carry out "
                f"its recipe again, which stores them, or {BY_HAND}"
            ), False
    (_, new), (_, old) = kept
    if len(new.nll) != len(old.nll) or not (new.is_finite and old.is_finite):
        return f"its windows are not those of version {champion.version}, or not numbers", False
    if few := too_few(len(new.nll), confidence):
        return f"{few} to compare it with version {champion.version}", False
    found = differences(new, old, confidence)
    words = f"{' and '.join(map(str, found))} nats per token against version {champion.version}"
    words += f" with confidence {confidence:g}"
    if not any(one.mean for one in found):
        return f"{words}: equal, which keeps the champion", False
    worse = [one.name for one in found if not one.bound <= 0]
    if worse:
        return f"{words}: not shown to be no worse in {' and '.join(worse)}", False
    return words, True


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
