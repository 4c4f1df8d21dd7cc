"""Which flow runs are alive: each holds a lock that the kernel frees when its process dies.

Prefect leaves a killed run in state Running for ever. Here the next start finds its lock free and
marks it Crashed. An owner lock is taken before a flow run exists and found through a tag, so that
there is no moment in which a kill goes unnoticed; a lock on the run itself serves where Prefect
creates the run (scheduled deployments).
"""

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from prefect import tags
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import Cancelled, Crashed

from tasks.engine import events
from tasks.engine.locks import create_locked, remove_if_free, try_lock

logger = logging.getLogger(__name__)

TAG = "owner-"
_ALIVE = ("PENDING", "RUNNING", "CANCELLING")
_PAGE = 200  # the API's own limit
MESSAGE = "The process of this run was killed; its finished stages are kept and not repeated."


@contextlib.contextmanager
def own_flow_runs(root: Path) -> Iterator[None]:
    """Own every flow run started inside the block: if this process dies, they are marked Crashed.

    Enter it before the flow is called and after the API is there.
    """
    owner = f"{TAG}{uuid.uuid4().hex[:12]}"
    path = _folder(root) / f"{owner}.lock"
    fd = create_locked(path)
    try:
        with tags(owner):
            yield
    finally:
        # The file stays unlocked: the next start looks whether the runs reached an end.
        os.close(fd)


def own_run(root: Path, flow_run_id: uuid.UUID | str) -> None:
    """Own one flow run, from inside its body, until this process ends.

    Not until the body ends: the run is still Running then, and a kill could leave it so.
    """
    create_locked(_folder(root) / f"{flow_run_id}.lock")


def mark_dead_runs(root: Path) -> list[str]:
    """Set every unfinished flow run whose owner died to Crashed, and return their ids.

    One that was to be cancelled becomes Cancelled; one that has ended meanwhile stays what it is.
    Unfinished task runs are marked too. Needs an API.
    """
    folder = _folder(root)
    marked = []
    for path in sorted(folder.glob("*.lock")):
        # Held while marking, so that two starts at once do not both report the same run.
        fd = try_lock(path) if path.exists() else None
        if fd is None:
            continue
        try:
            marked += _mark(path.stem)
            path.unlink(missing_ok=True)
        finally:
            os.close(fd)
    for path in folder.glob(".new-*"):
        remove_if_free(path)
    return marked


def _folder(root: Path) -> Path:
    return root / "locks" / "runs"


def _mark(owner: str) -> list[str]:
    which = {"tags": {"all_": [owner]}} if owner.startswith(TAG) else {"id": {"any_": [owner]}}
    chosen = FlowRunFilter(state={"type": {"any_": list(_ALIVE)}}, **which)
    marked = []
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=chosen):
            end = Cancelled if run.state.is_cancelling() else Crashed
            # Not by force: the server refuses it for a run that has reached its end meanwhile.
            answer = client.set_flow_run_state(run.id, end(message=MESSAGE))
            if answer.status != SetStateStatus.ACCEPT:
                continue
            _mark_task_runs(client, FlowRunFilter(id={"any_": [run.id]}), MESSAGE)
            events.record("marked_dead", flow_run_marked=str(run.id))
            logger.info("Marked flow run %s as %s: its process is gone", run.name, end().name)
            marked.append(str(run.id))
    return marked


def _mark_task_runs(client: SyncPrefectClient, chosen: FlowRunFilter, message: str) -> None:
    unfinished = TaskRunFilter(state={"type": {"any_": list(_ALIVE)}})
    tasks = client.read_task_runs(flow_run_filter=chosen, task_run_filter=unfinished, limit=_PAGE)
    for task in tasks:
        client.set_task_run_state(task.id, Crashed(message=message), force=True)
