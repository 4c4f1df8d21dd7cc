"""The flow tests run with the environment of the engine, whichever of them comes first."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def engine_first(engine_environment: Path) -> None:
    """Set the environment of the engine before any of these tests."""
