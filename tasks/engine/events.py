"""An append-only record of what was executed, written so that a kill loses at most nothing.

One JSON object a line in `<root>/events.jsonl`. Executions are counted here, not in Prefect's
database, whose last records are lost with the server; the kill tests find their moments here. What
happens many times a second is counted by its caller and written down by the span. A file that has
grown large is put aside, and the one that was put aside before goes.
"""

import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tasks.engine.environment import state_root
from tasks.engine.locks import names_file
from tasks.engine.root_layout import EVENTS as FILE
from tasks.engine.root_layout import OLDER_EVENTS

LIMIT = 8_000_000  # bytes: some 40,000 events, of hundreds of runs


def record(event: str, **facts: Any) -> None:
    """Append one line with the time, the pid, the flow run and the given facts.

    Args:
        event: What happened, for example "published".
        facts: JSON values; anything else is written as its text.
    """
    entry = {"event": event, "time": time.time(), "pid": os.getpid()}
    if flow_run := _flow_run_id():
        entry["flow_run"] = flow_run
    line = json.dumps({**entry, **facts}, default=str) + "\n"
    path = state_root() / FILE
    while not _append(path, line.encode()):
        pass  # put aside or removed between opening and locking


def _append(path: Path, line: bytes) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # The size grows page by page while another process writes: unlocked, half of its line
        # would look like a torn one.
        fcntl.flock(fd, fcntl.LOCK_EX)
        if not names_file(path, fd):
            return False
        size = os.fstat(fd).st_size
        if size > LIMIT:
            os.replace(path, path.with_name(OLDER_EVENTS))
            return False
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line  # the last writer died inside its line: keep ours apart from it
        # One write: with O_APPEND the kernel keeps lines of several processes apart.
        os.write(fd, line)
        return True
    finally:
        os.close(fd)


def read_events(root: Path | None = None) -> list[dict[str, Any]]:
    """Return the events that are kept, in the order written; a line torn by a kill is left out."""
    folder = root or state_root()
    files = [folder / OLDER_EVENTS, folder / FILE]
    text = b"\n".join(path.read_bytes() for path in files if path.exists())
    events = []
    for line in text.split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "event" in entry:
            events.append(entry)
    return events


def _flow_run_id() -> str | None:
    context = sys.modules.get("prefect.context")  # not loaded: this is no flow run
    if context is None:
        return None
    if flow_context := context.FlowRunContext.get():
        return str(flow_context.flow_run.id) if flow_context.flow_run else None
    if task_context := context.TaskRunContext.get():
        return str(task_context.task_run.flow_run_id or "") or None
    return None
