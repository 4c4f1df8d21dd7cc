"""What moves on the page of a flow run while it works: bars, and tables that grow.

A thread of its own sends them, the newest state of each and nothing in between, so that no run
waits for its page. A server that does not answer costs the page its movement, and a warning.
"""

import contextlib
import contextvars
import json
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from normtweak_core.lazy import lazy
from tasks.engine.client import no_answer, sync_client

actions = lazy("prefect.client.schemas.actions")
log = logging.getLogger(__name__)

SECONDS_BETWEEN_UPDATES = 3.0
SECONDS_TO_END = 10.0  # for what is left to be sent when a run ends

_current: "_LivePage | None" = None


def artifact_key(name: str, report: str) -> str:
    """Return the key under which Prefect keeps the history of a report over runs of one recipe."""
    return re.sub(r"[^a-z0-9]+", "-", f"{name}-{report}".lower()).strip("-")


@contextlib.contextmanager
def moving(flow_run_id: str, name: str) -> Iterator[None]:
    """Let bars and tables appear on the page of a run for the duration of the block.

    Args:
        flow_run_id: The run.
        name: Of its recipe; keys of artifacts begin with it.
    """
    global _current
    page = _LivePage(UUID(flow_run_id), name)
    before, _current = _current, page
    try:
        yield
    finally:
        _current = before
        page.close()


def show_bar(name: str, done: float, total: float, text: str) -> None:
    """Show how far a part of the present run is; outside a run nothing is shown.

    Args:
        name: Of the bar; one that is there is moved.
        done: Units done, of the total.
        total: Units.
        text: What is done, and in which unit.
    """
    if _current is not None:
        share = 100 * done / total if total else 0.0
        # No table or report of the same name may be taken for it.
        _current.show(f"{name} progress", _Artifact("progress", min(share, 100.0), text))


def show_table(name: str, rows: list[dict[str, Any]], text: str) -> bool:
    """Show a table of the present run, in place of what it was; return whether there is a run."""
    if _current is None:
        return False
    _current.show(name, _Artifact("table", json.dumps(rows, allow_nan=False), text))
    return True


@dataclass(frozen=True)
class _Artifact:
    kind: str  # as Prefect calls it
    data: float | str
    text: str
    id: UUID | None = None  # None: not made yet


class _LivePage:
    """Sends what a run shows, in the background."""

    def __init__(self, flow_run_id: UUID, name: str):
        self.flow_run_id, self.name = flow_run_id, name
        self._mutex = threading.Lock()
        self._wanted: dict[str, _Artifact] = {}  # not sent yet, by key
        self._made: dict[str, UUID] = {}
        self._something, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._answers = True

    def show(self, name: str, artifact: _Artifact) -> None:
        with self._mutex:
            self._wanted[artifact_key(self.name, name)] = artifact
        self._something.set()
        if self._thread is None:
            # The settings of Prefect, and the run that a log line belongs to, go by context.
            context = contextvars.copy_context()
            self._thread = threading.Thread(target=context.run, args=(self._send,), daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Send what is left; not for long."""
        self._closing.set()
        self._something.set()
        if self._thread is not None:
            self._thread.join(SECONDS_TO_END)
            if self._thread.is_alive():
                log.warning("the page of this run lacks the last of what moved on it")

    def _send(self) -> None:
        with sync_client() as client:
            while not (self._closing.is_set() and not self._wanted):
                self._something.wait()
                with self._mutex:
                    batch, self._wanted = self._wanted, {}
                    self._something.clear()
                for key, artifact in batch.items():
                    self._post(client, key, replace(artifact, id=self._made.get(key)))
                self._closing.wait(SECONDS_BETWEEN_UPDATES)

    def _post(self, client: Any, key: str, artifact: _Artifact) -> None:
        try:
            if artifact.id is None:
                made = client.create_artifact(
                    actions.ArtifactCreate(
                        key=key,
                        type=artifact.kind,
                        data=artifact.data,
                        description=artifact.text,
                        flow_run_id=self.flow_run_id,
                    )
                )
                self._made[key] = made.id
            else:
                change = actions.ArtifactUpdate(data=artifact.data, description=artifact.text)
                client.update_artifact(artifact.id, change)
            self._answers = True
        except no_answer() as error:
            if self._answers:
                log.warning("nothing moves on the page of this run: %r", error)
            self._answers = False
