"""Prefect's API in a process of its own that cannot outlive its parent. Made by `tasks.server.api`.

Two watches, because each has a gap. The kernel signals us when the thread that started us ends
(Linux only, and only asked for when that is the main thread). A pipe whose other end only the
parent holds reads as closed when the parent is gone (everywhere, but a forked child of the parent
would keep it open). On either the server stops in good order, and is ended after some seconds if it
does not.

Prefect queues the task runs it is told of in memory and writes them about once a second; ended by a
signal it forgets what is queued. Here it handles its queues first.
"""

import argparse
import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from tasks.server.report_pages import report_route

PR_SET_PDEATHSIG = 1
SECONDS_TO_STOP = 8
SECONDS_TO_DRAIN = 4


def main() -> None:
    """Serve the API on an inherited listening socket until told to stop or the parent is gone."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--socket", type=int, required=True, help="inherited listening socket")
    parser.add_argument("--ready", type=int, required=True, help="pipe that hears when we serve")
    parser.add_argument("--alive", type=int, required=True, help="pipe that closes with the parent")
    parser.add_argument("--parent", type=int, required=True, help="pid of the parent")
    parser.add_argument("--root", type=Path, required=True, help="state root, for the reports")
    parser.add_argument("--main-thread", action="store_true", help="started by its main thread")
    options = parser.parse_args()
    for fd in (options.socket, options.ready, options.alive):
        os.set_inheritable(fd, False)
    if options.main_thread and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != options.parent:  # it died before the line above
        sys.exit(1)
    threading.Thread(target=_end_with_parent, args=(options.alive,), daemon=True).start()
    _serve(socket.socket(fileno=options.socket), options.ready, options.root)


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)  # returns when the last writer, the parent, closes its end
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_STOP)
    os._exit(1)


def _serve(listener: socket.socket, ready: int, root: Path) -> None:
    # The import allocates half a million objects that all stay: collecting in between costs a
    # fifth of it.
    gc.disable()
    import uvicorn
    from prefect.server.api.server import create_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                gc.freeze()
                gc.enable()
                os.write(ready, b"1")
            os.close(ready)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await _handle_queues()
            await super().shutdown(sockets)

    app = create_app()
    # Before Prefect's own routes, the last of which answers every address.
    app.router.routes.insert(0, report_route(root))
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=2,
    )
    Server(config).run(sockets=[listener])


async def _handle_queues() -> None:
    """Wait until every queued message was handed to its consumer, which flushes when stopped."""
    from prefect.server.utilities.messaging.memory import Topic

    empty = 0
    end = time.monotonic() + SECONDS_TO_DRAIN
    while empty < 2 and time.monotonic() < end:  # twice: a message may be on its way in between
        await asyncio.sleep(0.05)
        subscriptions = [s for topic in Topic._topics.values() for s in topic._subscriptions]
        waiting = sum(s._queue.qsize() + s._retry.qsize() for s in subscriptions)
        empty = empty + 1 if waiting == 0 else 0


if __name__ == "__main__":
    main()
