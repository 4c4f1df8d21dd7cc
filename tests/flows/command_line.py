"""The command line in a process of its own, as who has set nothing but the root starts it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
OURS = ("NORMTWEAK_", "PREFECT_", "MLFLOW_")


def clean_environment(root: Path, **more: str) -> dict[str, str]:
    """Return their variables, with more if given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return clean | {"NORMTWEAK_HOME": str(root), "OMP_WAIT_POLICY": "PASSIVE"} | more


def normtweak(
    root: Path, *arguments: object, stdout: Any = None, stderr: Any = None, **variables: str
) -> subprocess.Popen:
    """Start a command on a state root."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *map(str, arguments)],
        cwd=REPOSITORY,
        env=clean_environment(root, **variables),
        stdout=stdout,
        stderr=stderr,
    )
