"""Two processes on one CPU (gloo) train what one process trains.

Started by torch's launcher, which accelerate reads: its own starts several processes on CPUs only
through MPI.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from normtweak_core.training.checkpoint import checkpoints
from tests.core.training import two_processes

REPOSITORY = Path(__file__).parents[3]


def run(command: list[str], source: Path, folder: Path) -> tuple[dict, dict]:
    folder.mkdir()
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("ACCELERATE_", "PYTEST_"))}
    done = subprocess.run(
        [*command, str(source), str(folder)],
        cwd=REPOSITORY,
        env=clean
        | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads((folder / "facts.json").read_text())
    return facts, load_file(checkpoints(folder)[0])


@pytest.mark.timeout(240)
def test_two_processes_share_each_batch_and_end_where_one_does(tiny_folders, tmp_path):
    script = str(Path(two_processes.__file__))
    alone, expected = run([sys.executable, script], tiny_folders["llama"], tmp_path / "one")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--standalone", script]
    both, weights = run(launcher, tiny_folders["llama"], tmp_path / "two")
    assert (alone["processes"], both["processes"]) == (1, 2)
    assert both["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert expected.keys() == weights.keys()
    for name, tensor in expected.items():
        if name.startswith("weight."):
            # Adam's first steps have the size of the rate whatever the gradient: a sign that
            # rounding turns is the largest difference there can be.
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=8e-3)
            assert (weights[name] - tensor).abs().mean() < 1e-4
