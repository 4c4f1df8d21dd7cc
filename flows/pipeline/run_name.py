"""What a flow run is called: as a person has typed, else by what it does and when it began."""

import time
from collections.abc import Callable

from prefect.context import FlowRunContext


def run_name(pattern: str) -> Callable[[], str]:
    """Return the ``flow_run_name`` of a flow.

    A run that a person starts from a deployment keeps the name of the form. Runs of a command and
    of a schedule, which Prefect gives random names, are called after their parameters, with the
    time at which they began, so that reruns are told apart.

    Args:
        pattern: With the parameters of the flow in braces, such as ``{recipe.name}``.
    """

    def name() -> str:
        context = FlowRunContext.get()
        assert context is not None  # Prefect asks within the run
        run = context.flow_run
        assert run is not None
        base = pattern.format(**context.parameters)
        typed = run.deployment_id is not None and not run.auto_scheduled
        if typed or run.name.startswith(f"{base} "):  # named before: it goes on
            return run.name
        return f"{base} {time.strftime('%m-%d %H:%M:%S')}"

    return name
