"""The registration stage: one registry version per export, whatever number of times it is asked."""

import os
from typing import Any

from prefect import State, task

from tasks.engine import events
from tasks.engine.environment import state_root
from tasks.registry.waiting import NotRegisteredError, Waiting, register, register_others

PAUSES = (1, 5, 20)  # seconds before another try, where the registry may answer by then


def _may_pass(task: Any, run: Any, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, NotRegisteredError) and error.may_pass


@task(
    task_run_name="register",
    retries=len(PAUSES),
    retry_delay_seconds=list(PAUSES),
    retry_condition_fn=_may_pass,
)
def register_stage(waiting: Waiting) -> dict[str, Any]:
    """Return the registered version as plain data; the same content gives the same version.

    Not cached: the registry is asked each time, since it can lose or move things by itself. What
    waits for the same registry since an earlier run is registered too.

    Raises:
        NotRegisteredError: The registry did not take the model, which waits.
    """
    events.record("register", part="begin")
    tracking_uri = os.environ["MLFLOW_TRACKING_URI"]
    register_others(state_root(), tracking_uri, own=waiting)
    registered = register(state_root(), waiting, tracking_uri)
    events.record("register", part="done", version=registered.version)
    return registered.model_dump(mode="json")
