"""The registration stage: one registry version per export, whatever number of times it is asked."""

import os
from pathlib import Path
from typing import Any

from prefect import task

from tasks.engine import events
from tasks.engine.environment import state_root


@task(task_run_name="register")
def register_stage(
    name: str,
    alias: str,
    export: Any,
    metrics: Any,
    tags: Any,
    reports: Any,
    verdict: Any,
    record: Any,
) -> dict[str, Any]:
    """Return the registered version as plain data; the same content gives the same version.

    Not cached: the registry is asked each time, since it can lose or move things by itself.

    Raises:
        InputError: The registry does not answer.
    """
    from tasks.registry.versions import register_export

    events.record("register", part="begin")
    root = state_root()
    registered = register_export(
        root / export.folder,
        name,
        export.export_sha256,
        metrics,
        tags,
        [Path(report) for report in reports],
        alias,
        os.environ["MLFLOW_TRACKING_URI"],
        root / "mlartifacts",
        root / "locks",
        verdict,
        record,
    )
    events.record("register", part="done", version=registered.version)
    return registered.model_dump(mode="json")
