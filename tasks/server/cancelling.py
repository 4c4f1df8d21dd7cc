"""Whether a flow run shall go on: it looks at its own state, and ends when somebody cancels it.

Prefect ends the processes that its own runners and workers have started, while those live. Of a run
in a terminal, or one whose `normtweak serve` was killed, it changes the state and no more. So every
run watches itself from a second thread. A cancel reaches the main thread the way SIGTERM does: a
training ends after the step that runs, so that it can be saved.

Registering asks once more at its very moment (`raise_if_cancelled`). With the last of these
questions (`last_call`) it begins to move aliases: from there on a run is completed, not cancelled.
"""

import contextlib
import contextvars
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from normtweak_core.lazy import lazy
from tasks.engine.client import no_answer, sync_client
from tasks.engine.locks import create_locked, held
from tasks.server.api import ServerError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

log = logging.getLogger(__name__)
states = lazy("prefect.states")

SECONDS_BETWEEN_LOOKS = 3.0
SECONDS_TO_STOP = 8.0  # of a run whose `normtweak serve` is gone, and perhaps its server as well
SERVED_BY_VARIABLE = "NORMTWEAK_SERVED_BY"  # lock file of the `normtweak serve` that started a run
TERMINATED = 128 + signal.SIGTERM
ORPHANED = "the normtweak serve that started this run has ended; so does the run"

_current: "_Watch | None" = None


class RunCancelled(BaseException):
    """Somebody has cancelled this run. No `Exception`: nothing on the way may take it for one."""


@contextlib.contextmanager
def watched(flow_run_id: str) -> Iterator[None]:
    """Watch the state of a flow run for the duration of its body.

    Raises:
        RunCancelled: It was cancelled, whatever has ended the body because of that.
    """
    global _current
    served_by = os.environ.get(SERVED_BY_VARIABLE)
    watch = _Watch(UUID(flow_run_id), Path(served_by) if served_by else None)
    before, _current = _current, watch
    watch.start()
    try:
        yield
        watch.stop()
        watch.settle()
    except BaseException as error:
        watch.ended.set()
        if watch.cancelled and not isinstance(error, RunCancelled):
            raise RunCancelled from error
        raise
    finally:
        _current = before


@contextlib.contextmanager
def serving(root: Path) -> Iterator[None]:
    """Let the runs that are started inside the block end with this process, however it ends."""
    path = root / "locks" / f"serve-{os.getpid()}.lock"
    fd = create_locked(path)
    os.environ[SERVED_BY_VARIABLE] = str(path)
    try:
        yield
    finally:
        del os.environ[SERVED_BY_VARIABLE]
        path.unlink(missing_ok=True)
        os.close(fd)


def raise_if_cancelled(ask: bool = True) -> None:
    """Raise where the present run was cancelled; outside a run nothing can be.

    Args:
        ask: Ask the server, instead of relying on what was seen some seconds ago.

    Raises:
        RunCancelled: It was.
        ServerError: The server does not answer, so that nobody knows.
    """
    if _current is not None:
        _current.check(ask)


def was_cancelled() -> bool:
    """Tell whether somebody has cancelled the present run, as far as is known; asks nobody."""
    return _current is not None and _current.cancelled


def last_call() -> None:
    """Ask for a cancel once more; whatever comes later comes too late for the present run.

    Raises:
        RunCancelled: It was cancelled.
        ServerError: The server does not answer, so that nobody knows.
    """
    if _current is not None:
        _current.check(ask=True)
        _current.stop()
        _current.is_too_late = True


class _Watch:
    """A thread that looks at the state of a run, and interrupts the thread that made it."""

    def __init__(self, flow_run_id: UUID, served_by: Path | None):
        self.flow_run_id, self.served_by = flow_run_id, served_by
        self.cancelled = False
        self.is_too_late = False
        self.ended = threading.Event()
        self._signalled = False
        self._mutex = threading.Lock()
        # Elsewhere no signal can be taken: there a run is ended between two stages.
        self._is_main = threading.current_thread() is threading.main_thread()

    def start(self) -> None:
        """Begin to look."""
        # The settings of Prefect, and the run that a log line belongs to, go by context.
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._look_on,), daemon=True).start()

    def check(self, ask: bool) -> None:
        """Raise `RunCancelled` where the run was cancelled, unless that came too late."""
        if ask and not self.is_too_late:
            try:
                with sync_client() as client:
                    self.cancelled |= _is_cancel(client.read_flow_run(self.flow_run_id).state)
            except no_answer() as error:
                raise ServerError(
                    "The Prefect server must say whether this run was cancelled before anything is "
                    f"registered, but it does not answer ({type(error).__name__}); finished stages "
                    "are kept: run the same command again when it does."
                ) from error
        if self.cancelled:
            raise RunCancelled

    def stop(self) -> None:
        """Interrupt nobody any more; raise where that has just been done."""
        with self._mutex:
            self.ended.set()
        if self._signalled:
            time.sleep(1)  # the signal is on its way, and ends the sleep

    def settle(self) -> None:
        """Let the server take Completed, whatever it was told of this run while it worked.

        It would refuse it after Cancelling, and after a Crashed that an automation has set because
        a heartbeat was late.
        """
        try:
            with sync_client() as client:
                state = client.read_flow_run(self.flow_run_id).state
                if _is_cancel(state) and not self.is_too_late:
                    raise RunCancelled
                if state is not None and not state.is_running():
                    told = f"had done its work when it was set to {state.name}"
                    done = states.Running(message=told)
                    client.set_flow_run_state(self.flow_run_id, done, force=True)
        except no_answer() as error:
            log.warning("the Prefect server does not say what state this run is in: %r", error)

    def _look_on(self) -> None:
        answers = True
        with sync_client() as client:
            while not self.ended.is_set():
                if self.served_by is not None and not held(self.served_by):
                    self._end_orphan()
                try:
                    if _is_cancel(client.read_flow_run(self.flow_run_id).state):
                        self._interrupt(is_cancel=True)
                    answers = True
                except no_answer() as error:
                    if answers:
                        log.warning("the Prefect server cannot be asked for a cancel: %r", error)
                    answers = False
                self.ended.wait(SECONDS_BETWEEN_LOOKS)

    def _interrupt(self, is_cancel: bool) -> None:
        with self._mutex:
            if self.ended.is_set():
                return
            self.cancelled |= is_cancel
            if self._is_main and not self._signalled:
                self._signalled = True
                # To the thread, not the process: so it is woken from whatever it waits for.
                signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    def _end_orphan(self) -> None:
        log.warning(ORPHANED)
        self._interrupt(is_cancel=False)
        time.sleep(SECONDS_TO_STOP)
        os._exit(TERMINATED)


def _is_cancel(state: "State | None") -> bool:
    return state is not None and (state.is_cancelling() or state.is_cancelled())
