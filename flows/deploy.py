"""The deployments of prefect.yaml, for `normtweak serve`: one place says what runs when.

`prefect deploy --all` reads the same file with Prefect's own reader; here the same deployments are
served by one process, without a work pool or a worker.
"""

import asyncio
import importlib
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.recipes.file import parse_yaml
from flows.recipes.kinds import KINDS, RecipeKind
from normtweak_core.errors import InputError
from normtweak_core.given_files import read_utf8
from tasks.engine.environment import REPOSITORY

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment
    from prefect.schedules import Schedule

FILE = "prefect.yaml"
ENTRYPOINTS = {kind.entrypoint: kind for kind in KINDS}
SCHEDULE_KEYS = ("cron", "timezone", "slug", "active", "parameters")


@dataclass(frozen=True)
class DeploymentSpec:
    """One deployment of prefect.yaml."""

    name: str
    description: str
    tags: list[str]
    kind: RecipeKind
    recipe: Any  # of its kind
    schedules: list[dict[str, Any]]
    concurrency_limit: dict[str, Any] | None

    @property
    def title(self) -> str:
        """Name and schedule, for a person."""
        times = [f"{one['cron']} {one.get('timezone', 'UTC')}" for one in self.schedules]
        return f"{self.kind.name}/{self.name} ({'; '.join(times) or 'no schedule'})"


def find_deployment_file() -> Path:
    """Return the prefect.yaml of the working folder, else that of this source tree.

    Raises:
        InputError: Neither exists.
    """
    for folder in (Path.cwd(), REPOSITORY):
        if (folder / FILE).is_file():
            return folder / FILE
    raise InputError(
        f"the scheduled deployments stand in {FILE}; found none in {Path.cwd()}: run the command "
        "where it lies"
    )


def read_deployments(path: Path) -> list[DeploymentSpec]:
    """Return the deployments of a file, their recipes validated.

    Raises:
        InputError: The file is not YAML, holds no deployment, one of another flow, a schedule
            that is not by cron, or a recipe that is not valid.
    """
    data = parse_yaml(read_utf8(path, "the file"), f"{path} must be YAML; it is not")
    entries = data.get("deployments") if isinstance(data, dict) else None
    if not entries:
        raise InputError(f"{path} must list deployments; found none: add one")
    return [_read(entry, path) for entry in entries]


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
    from prefect.runner import Runner

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


async def served_deployment(spec: DeploymentSpec) -> "RunnerDeployment":
    """Return the deployment as Prefect serves it; it is found by module, from any folder."""
    from prefect.client.schemas.objects import ConcurrencyLimitConfig
    from prefect.flows import EntrypointType

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


def _cron(cron: str, **options: Any) -> "Schedule":
    from prefect.schedules import Cron

    return Cron(cron, **options)


def prepare_run() -> None:
    """Set what the commands set before Prefect is imported, in the process of a worker's run.

    A pull step of prefect.yaml: it runs before the flow is loaded. `normtweak serve` needs none,
    since its runs inherit its environment.
    """
    from prefect.context import refresh_global_settings_context

    from tasks.engine.environment import FOLDERS, set_variables, state_root

    root = state_root()
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    set_variables(root)
    refresh_global_settings_context()


def _read(entry: dict[str, Any], path: Path) -> DeploymentSpec:
    name = entry.get("name")
    kind = ENTRYPOINTS.get(entry.get("entrypoint"))
    if kind is None:
        *most, last = ENTRYPOINTS
        raise InputError(
            f"{path}: deployment {name} must have the entrypoint {', '.join(most)} or {last}; "
            f"found {entry.get('entrypoint')!r}"
        )
    schedules = entry.get("schedules") or []
    for schedule in schedules:
        unknown = sorted(set(schedule) - set(SCHEDULE_KEYS))
        if unknown or "cron" not in schedule:
            raise InputError(
                f"{path}: a schedule of {name} must have cron, and may have "
                f"{', '.join(SCHEDULE_KEYS[1:])}; found {sorted(schedule)}"
            )
    limit = entry.get("concurrency_limit")
    return DeploymentSpec(
        name=name,
        description=entry.get("description") or "",
        tags=entry.get("tags") or [],
        kind=kind,
        recipe=kind.recipe.parse((entry.get("parameters") or {}).get("recipe") or {}),
        schedules=schedules,
        concurrency_limit={"limit": limit} if isinstance(limit, int) else limit,
    )
