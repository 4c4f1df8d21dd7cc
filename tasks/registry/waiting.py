"""Finished models that the registry has not taken yet: kept in the state root until it has.

A model waits from the moment its registration begins. So neither a tracking server that is down
when a night's work is done nor a kill at that moment loses it: the next run on the same registry
registers it, or `normtweak register --pending` does.
"""

import contextlib
import errno
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from normtweak_core.errors import ForeseenError, InputError
from normtweak_core.lazy import lazy
from tasks.engine.addresses import NoAnswerError, without_password
from tasks.engine.artifacts import write_atomically
from tasks.engine.locks import exclusive, held
from tasks.engine.root_layout import LOCKS, MLARTIFACTS, WAITING
from tasks.registry.flavor.run_record import RunRecord
from tasks.registry.promotion import Verdict
from tasks.server.api import ServerError
from tasks.server.cancelling import RunCancelled, was_cancelled

versions = lazy("tasks.registry.versions")  # with MLflow's client
log = logging.getLogger(__name__)

REGISTER = "normtweak register --pending"
PASSING = (429, 500, 502, 503, 504)  # HTTP


class NotRegisteredError(ForeseenError):
    """The registry did not take a finished model, which waits."""

    def __init__(self, why: Exception, root: Path):
        text = why.clause if isinstance(why, InputError) else _first_line(why)
        super().__init__(
            f"the model is finished and not registered ({text}); it waits under {root}: "
            f"`{REGISTER}` registers it, as does the next run"
        )
        # A registry that is restarted or busy answers a little later.
        self.may_pass = isinstance(why, NoAnswerError | OSError) or (
            isinstance(why, MlflowException) and why.get_http_status_code() in PASSING
        )


class Waiting(BaseModel, frozen=True):
    """All that a registration takes; its files lie under the state root."""

    model_config = ConfigDict(ser_json_inf_nan="constants", extra="forbid")

    name: str
    alias: str
    export: str  # folder, relative to the state root
    export_sha256: str = Field(pattern=r"[0-9a-f]{64}")
    metrics: dict[str, float]
    tags: dict[str, str]
    reports: list[str]  # relative to the state root
    verdict: Verdict
    record: RunRecord
    registry: str  # its address, without a password

    def __str__(self) -> str:
        return f"{self.name} ({self.export_sha256[:12]})"

    def place(self, root: Path) -> Path:
        """Return the file that it waits in: one a name and content, whatever the registry."""
        name = hashlib.sha256(self.name.encode()).hexdigest()[:8]
        return root / WAITING / f"{name}-{self.export_sha256[:16]}.json"

    def lock(self, root: Path) -> Path:
        """Return the lock of whoever registers it."""
        return root / LOCKS / f"{WAITING}-{self.place(root).stem}.lock"


def all_waiting(root: Path) -> list[Waiting]:
    """Return what waits and nobody registers now, the oldest first.

    Raises:
        InputError: A file among them is none of ours, or damaged.
    """
    files = sorted((root / WAITING).glob("*.json"), key=lambda file: file.stat().st_mtime)
    found = [_read(file) for file in files]
    return [waiting for waiting in found if not held(waiting.lock(root))]


def _read(file: Path) -> Waiting:
    try:
        return Waiting.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{file} must hold a model that waits to be registered; it cannot be read "
            f"({' '.join(str(error).split())[:160]}): carry out its recipe again, and remove it."
        ) from error


def register(root: Path, waiting: Waiting, tracking_uri: str) -> "versions.Registered":
    """Return the version of a model, which waits until there is one.

    Args:
        root: The state root.
        waiting: The model.
        tracking_uri: Of the registry that takes it.

    Raises:
        NotRegisteredError: The registry does not answer, or fails; the model waits.
        RunCancelled: The run that registers was cancelled; the model does not wait.
        ServerError: Nobody can say whether it was, so the model does not wait either.
    """
    with exclusive(waiting.lock(root), message=f"registering {waiting}"):
        place = waiting.place(root)
        place.parent.mkdir(exist_ok=True)
        write_atomically(place, waiting.model_dump_json().encode())
        try:
            registered = _registered(root, waiting, tracking_uri)
        except (RunCancelled, ServerError):
            place.unlink(missing_ok=True)
            raise
        except (InputError, MlflowException, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NotRegisteredError(error, root) from error
        place.unlink(missing_ok=True)
    return registered


def _registered(root: Path, waiting: Waiting, tracking_uri: str) -> "versions.Registered":
    return versions.register_export(
        root / waiting.export,
        waiting.name,
        waiting.export_sha256,
        waiting.metrics,
        waiting.tags,
        [root / report for report in waiting.reports],
        waiting.alias,
        tracking_uri,
        root / MLARTIFACTS,
        root / LOCKS,
        waiting.verdict,
        waiting.record,
    )


@contextlib.contextmanager
def unless_cancelled(root: Path, waiting: Waiting) -> Iterator[None]:
    """Let a model wait no longer where its run was cancelled inside: by a signal, between tries."""
    try:
        yield
    except BaseException:
        if was_cancelled():
            waiting.place(root).unlink(missing_ok=True)
        raise


def register_others(
    root: Path, tracking_uri: str, own: Waiting | None = None
) -> list["versions.Registered"]:
    """Register what waits for a registry, the oldest first; never fails.

    A model of another registry goes on waiting.

    Args:
        root: The state root.
        tracking_uri: Of the registry.
        own: A model that is newer than all of them and not registered here, since an alias stays
            at what comes last.
    """
    done = []
    try:
        for waiting in all_waiting(root):
            if own is not None and waiting.place(root) == own.place(root):
                continue
            if waiting.registry == without_password(tracking_uri):
                done.append(register(root, waiting, tracking_uri))
                log.info("registered %s, which had waited", done[-1].model_uri)
    except (NotRegisteredError, InputError) as error:
        log.warning("a model that waits is not registered: %s", error)
    return done


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return f"{text[:200]} ({type(error).__name__})"
