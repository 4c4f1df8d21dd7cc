"""How a child process ends with the process that asked for it, however that ends.

Two watches, because each has a gap. The kernel signals the child when the thread that started it
ends (Linux only, and only asked for when that is the main thread). A pipe whose other end only the
parent holds reads as closed when the parent is gone (everywhere, but a forked child of the parent
would keep it open).
"""

import argparse
import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1


def watch_arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what `tasks.server.children` tells every child."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--alive", type=int, required=True, help="pipe that closes with the parent")
    parser.add_argument("--parent", type=int, required=True, help="pid of the parent")
    parser.add_argument("--main-thread", action="store_true", help="started by its main thread")
    return parser


def require_parent(options: argparse.Namespace) -> None:
    """End this process where its parent is gone already; else begin the kernel's watch."""
    os.set_inheritable(options.alive, False)
    if options.main_thread:
        end_with_parent_thread()
    if os.getppid() != options.parent:  # it died before the line above
        sys.exit(1)


def watch_pipe(alive: int, patience: float | None = None) -> None:
    """Send this process SIGTERM when its parent has closed its end of a pipe.

    Args:
        alive: Our end.
        patience: Seconds after which the process is ended in any case; None: never.
    """
    threading.Thread(target=_wait, args=(alive, patience), daemon=True).start()


def end_with_parent_thread() -> None:
    """Ask the kernel, where it is Linux, for SIGTERM when the thread that started us ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(alive: int, patience: float | None) -> None:
    os.read(alive, 1)  # returns when the last writer, the parent, closes its end
    os.kill(os.getpid(), signal.SIGTERM)
    if patience is not None:
        time.sleep(patience)
        os._exit(1)
