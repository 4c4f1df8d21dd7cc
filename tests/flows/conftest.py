"""The engine of the task tests serves the flow tests too."""

from tests.tasks.conftest import engine, engine_environment, session_api  # noqa: F401
