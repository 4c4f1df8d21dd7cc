"""The flow tests run with the environment of the engine, whichever of them comes first."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.engine.environment import default_variables
from tests.flows.stage_keys import write_other_items
from tests.flows.tiny_model import variables_of, write_model, write_project


@pytest.fixture(scope="session", autouse=True)
def engine_first(engine_environment: Path) -> None:
    """Set the environment of the engine before any of these tests."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Models, texts and items that recipes can name, with the variables of a state of its own."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    write_other_items(folder)
    write_model(folder / "other-model", seed=1)
    with variables_of(folder / "state") as root:
        (root / "prefect").mkdir(parents=True)  # Prefect is imported by what reads keys
        os.environ |= default_variables(root) | {"OMP_NUM_THREADS": "2"}
        yield folder
