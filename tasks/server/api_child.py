"""Prefect's API in a process of its own that cannot outlive its parent. Made by `tasks.server.api`.

When that is gone (`tasks.server.watch`) the server stops in good order, and is ended after some
seconds if it does not.

Prefect queues the task runs it is told of in memory and writes them about once a second; ended by a
signal it forgets what is queued. Here it handles its queues first.
"""

import asyncio
import gc
import os
import socket
import time
from pathlib import Path

from normtweak_core.lazy import lazy
from tasks.server.report_pages import report_route
from tasks.server.watch import require_parent, watch_arguments, watch_pipe

# Imported while the parent is watched.
memory = lazy("prefect.server.utilities.messaging.memory")
server = lazy("prefect.server.api.server")
uvicorn = lazy("uvicorn")

SECONDS_TO_STOP = 8
SECONDS_TO_DRAIN = 4


def main() -> None:
    """Serve the API on an inherited listening socket until told to stop or the parent is gone."""
    parser = watch_arguments(main.__doc__)
    parser.add_argument("--socket", type=int, required=True, help="inherited listening socket")
    parser.add_argument("--ready", type=int, required=True, help="pipe that hears when we serve")
    parser.add_argument("--root", type=Path, required=True, help="state root, for the reports")
    options = parser.parse_args()
    for fd in (options.socket, options.ready):
        os.set_inheritable(fd, False)
    require_parent(options)
    watch_pipe(options.alive, SECONDS_TO_STOP)
    _serve(socket.socket(fileno=options.socket), options.ready, options.root)


def _serve(listener: socket.socket, ready: int, root: Path) -> None:
    # The import allocates half a million objects that all stay: collecting in between costs a
    # fifth of it.
    gc.disable()

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

    app = server.create_app()
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
    empty = 0
    end = time.monotonic() + SECONDS_TO_DRAIN
    while empty < 2 and time.monotonic() < end:  # twice: a message may be on its way in between
        await asyncio.sleep(0.05)
        subscriptions = [s for topic in memory.Topic._topics.values() for s in topic._subscriptions]
        waiting = sum(s._queue.qsize() + s._retry.qsize() for s in subscriptions)
        empty = empty + 1 if waiting == 0 else 0


if __name__ == "__main__":
    main()
