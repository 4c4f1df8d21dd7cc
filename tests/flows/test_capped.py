"""A run under a limit of the kernel: the same bytes, or refused before its start."""

import json
import os
import resource
import subprocess
import sys

import pytest
import yaml

from flows.checks.memory import FIXED_MEMORY
from flows.recipes.quantize import Recipe
from normtweak_core import quantize
from tests.tiny_exports import save_tiny_model, tiny_config

MIB = 1 << 20
CAP = 1100 * MIB


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("capped") / "model", tiny_config("llama"))


def recipe(model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("A line of words that says little. " * 400)
    return {
        "name": "capped",
        "model": {"source": str(model)},
        "calibration": {"source": "text", "path": str(text), "samples": 8, "length": 32},
        "quantization": {"bits": 4, "group_size": 32, "symmetric": True},
        "norm_tweak": {"enabled": False},
        "final_tune": {"enabled": False},
        "evaluation": {"perplexity": {"path": str(text), "max_tokens": 256}},
    }


def capped(values, tmp_path, most):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "flows.cli", "quantize", str(tmp_path / "recipe.yaml")]
    return subprocess.run(
        [*command, "--result", str(tmp_path / "result.json")],
        env=os.environ | {"NORMTWEAK_HOME": str(tmp_path / "state"), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (most, most)),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_under_a_cap_of_the_kernel_writes_the_same_bytes(model, tmp_path):
    values = recipe(model, tmp_path)
    done = capped(values | {"limits": {"memory": CAP}}, tmp_path, CAP)
    assert done.returncode == 0, done.stderr
    free = quantize(
        model,
        bits=4,
        group_size=32,
        symmetric=True,
        calibration=Recipe.parse(values).calibration,
        norm_tweak=False,
        final_tune=False,
        progress=False,
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["export_sha256"] == free.report.export_sha256


def test_a_cap_below_what_a_run_needs_refuses_it_before_its_start(model, tmp_path):
    done = capped(recipe(model, tmp_path), tmp_path, FIXED_MEMORY)
    assert done.returncode == 2
    assert "no stage may need more than what the limit of the shell (ulimit)" in done.stderr
    assert not (tmp_path / "state").exists()
