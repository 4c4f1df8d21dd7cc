"""Whole runs on a CUDA device: what they register is as good as what the CPU makes."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.flows.command_line import normtweak

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def finished(root, command, recipe, device, *settings):
    result = root / f"{device}.json"
    root.mkdir(exist_ok=True)
    options = [word for one in (f"model.device={device}", *settings) for word in ("--set", one)]
    run = normtweak(root, command, f"conf/{recipe}.yaml", *options, "--result", str(result))
    assert run.wait(500) == 0
    return json.loads(result.read_text())


def test_the_quickstart_is_as_good_as_on_the_cpu(tmp_path):
    shorter = ("calibration.samples=16", "final_tune.enabled=false")
    runs = {
        device: finished(tmp_path / device, "quantize", "quickstart", device, *shorter)
        for device in ("cpu", "cuda")
    }
    ratios = {device: run["metrics"]["perplexity/ratio"] for device, run in runs.items()}
    assert ratios["cuda"] == pytest.approx(ratios["cpu"], rel=0.1)
    floats = {device: run["metrics"]["perplexity/float"] for device, run in runs.items()}
    assert floats["cuda"] == pytest.approx(floats["cpu"], rel=1e-3)
    assert runs["cuda"]["registered"]["version"] == 1
    export = f"model.source={runs['cuda']['export_dir']}"
    shorter = ("finetune.block_steps=20", "finetune.steps=20", "finetune.data.samples=64")
    trained = finished(
        tmp_path / "cuda", "finetune", "finetune-quickstart", "cuda", export, *shorter
    )
    # A few steps show that it runs and does no harm; the studies show what more of them bring.
    assert trained["metrics"]["perplexity/ratio"] < 1.02 * ratios["cuda"]


def test_a_ternary_training_killed_on_the_device_ends_in_the_same_export(tmp_path):
    settings = ("ternary.steps=60", "ternary.save_every=5")
    whole = finished(tmp_path / "whole", "ternary", "ternary-quickstart", "cuda", *settings)
    killed = tmp_path / "killed"
    options = [word for one in ("model.device=cuda", *settings) for word in ("--set", one)]
    run = normtweak(killed, "ternary", "conf/ternary-quickstart.yaml", *options)
    try:
        deadline = time.monotonic() + 300
        while not list(Path(killed).glob("**/step-*")) and time.monotonic() < deadline:
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    finally:
        run.kill()
        run.wait()
    again = finished(killed, "ternary", "ternary-quickstart", "cuda", *settings)
    assert again["export_sha256"] == whole["export_sha256"]
    assert again["training"]["seconds"] > 0
