"""Serves deployments from one process, without a work pool or a worker."""

import asyncio
import importlib
import signal
from collections.abc import Callable
from typing import Any

from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import EntrypointType
from prefect.runner import Runner
from prefect.schedules import Cron, Schedule

from flows.deploy import DeploymentSpec


def serve_deployments(specified: list[DeploymentSpec], ready: Callable[[], None]) -> None:
    """Register the deployments and run what is due, until Ctrl-C, SIGTERM or a closed terminal.

    One run at a time: two would share the same cores. At the end a run that is under way is
    cancelled, and schedules are paused, since nobody would heed them, until the next start.

    Args:
        specified: What to serve.
        ready: Called once all of them are registered.
    """
    asyncio.run(_serve(specified, ready))


async def _serve(specified: list[DeploymentSpec], ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    stops: list[asyncio.Task[None]] = []

    class StoppableRunner(Runner):
        def handle_sigterm(self, *_: Any, **__: Any) -> None:
            # Prefect's own handler forgets to await the coroutine, and so stops nothing.
            loop.call_soon_threadsafe(self.begin_to_stop)

        def begin_to_stop(self) -> None:
            if not stops:  # a runner that is stopping cannot be stopped
                stops.append(loop.create_task(self.astop()))

    runner = StoppableRunner(limit=1)
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, runner.handle_sigterm)
    for spec in specified:
        await runner.aadd_deployment(await served_deployment(spec))
    ready()
    await runner.start()


async def served_deployment(spec: DeploymentSpec) -> RunnerDeployment:
    """Return the deployment as Prefect serves it; it is found by module, from any folder."""
    flow = getattr(importlib.import_module(f"flows.{spec.kind.name}"), spec.kind.name)
    limit = spec.concurrency_limit
    return await flow.ato_deployment(
        name=spec.name,
        description=spec.description,
        tags=spec.tags,
        # Every field, as the page shows it and the run records it.
        parameters={"recipe": spec.recipe.model_dump(mode="json")},
        paused=False,
        schedules=[_cron(**schedule) for schedule in spec.schedules],
        concurrency_limit=None if limit is None else ConcurrencyLimitConfig(**limit),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def _cron(cron: str, **options: Any) -> Schedule:
    return Cron(cron, **options)
