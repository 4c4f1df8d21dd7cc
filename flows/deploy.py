"""The deployments of prefect.yaml, for `normtweak serve`: one place says what runs when.

`prefect deploy --all` reads the same file with Prefect's own reader.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.recipes.file import parse_yaml
from flows.recipes.kinds import KINDS, RecipeKind
from normtweak_core.errors import InputError
from normtweak_core.given_files import read_utf8
from tasks.engine.environment import FOLDERS, REPOSITORY, set_variables, state_root

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


def prepare_run() -> None:
    """Set what the commands set before Prefect is imported, in the process of a worker's run.

    A pull step of prefect.yaml: it runs before the flow is loaded. `normtweak serve` needs none,
    since its runs inherit its environment.
    """
    from prefect.context import refresh_global_settings_context  # Prefect takes seconds to import

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
