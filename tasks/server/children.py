"""Child processes that end with this one: started with both watches, stopped in good order.

The child is `tasks.server.api_child` or `tasks.server.guarded_child`; what the two watches are says
`tasks.server.watch`.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

SECONDS_TO_STOP = 10
LOG_LINES_SHOWN = 15


class Child:
    """A module of this project that runs as a child process and cannot outlive us."""

    def __init__(
        self,
        module: str,
        arguments: list[str],
        environment: dict[str, str],
        log: Path,
        inherited: tuple[int, ...] = (),
    ):
        """Start it.

        Args:
            module: What `python -m` runs; it takes --alive, --parent and --main-thread.
            arguments: Further arguments, behind those.
            environment: All of its environment.
            log: File that its output goes to, anew.
            inherited: File descriptors it gets under the same numbers.
        """
        child_alive, self._alive = os.pipe()
        command = [sys.executable, "-P", "-m", module]
        command += [f"--alive={child_alive}", f"--parent={os.getpid()}"]
        if threading.current_thread() is threading.main_thread():
            command += ["--main-thread"]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, *arguments],
                env=environment,
                pass_fds=(*inherited, child_alive),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                # Ctrl-C goes to all processes of a terminal's group; the run must still be able to
                # tell the server how it ended.
                start_new_session=True,
            )
        os.close(child_alive)

    def runs(self) -> bool:
        """Tell whether it lives."""
        return self.process.poll() is None

    def stop(self) -> None:
        """End it in good order, and after some seconds in any case; return when it is gone."""
        os.close(self._alive)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def last_lines(log: Path) -> str:
    """Return the end of a child's log, to quote in an error."""
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES_SHOWN:]) or "(empty)"
