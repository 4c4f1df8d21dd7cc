"""Fixtures shared by all tests: seeded generators and data that may lie beside the repository."""

import gc
import os
import signal
from pathlib import Path

# Before torch is imported: threads that spin on a shared core make everything many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell starts its background jobs with SIGINT ignored, and children inherit that; the tests that
# press Ctrl-C on a child need it to be heard.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch

from tests import typechecks

typechecks.check_calls("normtweak_core")
pytest_plugins = ["tests.engine"]
REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_finish() -> None:
    """What the imports of all tests have made is no garbage: do not look at it again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_logstart() -> None:
    """Count the calls of each test anew."""
    typechecks.calls.clear()


@pytest.fixture
def seeded():
    """A function that returns a fresh generator for a seed."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def shared():
    """The folder of real models and data beside the repository."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "models" / "stories260K" / "model.safetensors").is_file():
        pytest.skip("the shared models and data do not lie beside the repository")
    return folder
