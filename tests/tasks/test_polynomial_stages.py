"""The stages of the polynomial study: what they publish, and where a stopped one goes on."""

from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from normtweak_core.polynomial.config import (
    Cell,
    FloatTrainingConfig,
    GridConfig,
    NetworkConfig,
    SamplesConfig,
)
from tasks.engine.progress import Progress

FLOAT = FloatTrainingConfig(epochs=3, batch=16, lr=1e-2)
GRID = GridConfig(epochs=1, batch=16)


@pytest.fixture
def work(root, engine_environment):
    from tasks.stages.polynomial import PolynomialWork

    recipe = SimpleNamespace(
        samples=SamplesConfig(train=64, test=16),
        network=NetworkConfig(hidden_layers=1, hidden_width=8),
        seed=0,
        evaluations=2,
        float_training=FLOAT,
        grid=GRID,
    )
    return PolynomialWork(recipe, "cpu", progress=Progress(terminal=False))


def run_float(work):
    from tasks.stages.polynomial import float_training

    key = float_training.key(work, {}, None)
    return key, float_training.body(key, work, "float training")


def test_a_float_stage_publishes_network_and_report(work, root):
    import json

    _, result = run_float(work)
    state = load_file(root / result.network.path)
    assert sorted(state) == [f"layers.{i}.{part}" for i in range(2) for part in ("bias", "weight")]
    report = json.loads((root / result.report.path).read_text())
    assert [step for step, _ in report["curve"]] == [0, 6, 12]
    assert report["test_loss"] == report["curve"][-1][1] < report["curve"][0][1]
    assert len(report["examples_before"]) == len(report["examples_after"]) == 6


def test_the_weights_of_a_cell_lie_on_its_levels(work, root):
    from tasks.stages.polynomial import train_cell

    _, pretrained = run_float(work)
    cell = Cell(bits=1.58, start="pretrained", lr=1e-3)
    key = train_cell.key(work, {"float training": pretrained}, cell)
    result = train_cell.body(key, work, cell, "a cell", pretrained)
    state = load_file(root / result.network.path)
    for index in range(2):
        levels = state[f"layers.{index}.weight"].unique()
        assert len(levels) == 3
        assert levels[1] == 0
        assert levels[0] == -levels[2]


def test_a_stopped_stage_goes_on_from_its_checkpoint_to_the_same_bytes(work, monkeypatch):
    from normtweak_core.polynomial import training
    from tasks.stages.polynomial import checkpoint_folder

    key, whole = run_float(work)
    assert not checkpoint_folder(key).exists()  # it took less than the seconds between two

    real = training._take_step
    taken: list[int] = []

    def stopping(network, optimizer, order, step, steps):
        if step == 7 and len(taken) == 7:
            raise KeyboardInterrupt
        taken.append(step)
        real(network, optimizer, order, step, steps)

    monkeypatch.setattr(training, "_take_step", stopping)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        run_float(work)
    assert [path.name for path in sorted(checkpoint_folder(key).iterdir())] == [
        "step-00000006.safetensors",
        "step-00000007.safetensors",
    ]
    taken.append(-1)
    _, resumed = run_float(work)
    assert taken == [*range(7), -1, *range(7, 12)]
    assert resumed.network.sha256 == whole.network.sha256
    assert resumed.report.sha256 == whole.report.sha256


def test_samples_are_made_once_and_only_when_needed(work, monkeypatch):
    from normtweak_core.polynomial import study

    asked = []
    real = study.make_setting
    monkeypatch.setattr(study, "make_setting", lambda *a: asked.append(a) or real(*a))
    run_float(work)
    run_float(work)
    assert len(asked) == 1


def test_the_name_of_a_cell_tells_its_width_start_and_rate():
    from tasks.stages.polynomial import cell_name

    assert cell_name(Cell(bits=1.0, start="random", lr=1e-4)) == "1 bit, random, lr 0.0001"
    lora = Cell(bits=1.58, start="pretrained", lr=0.2, rank=32)
    assert cell_name(lora) == "1.58 bits, pretrained, LoRA of rank 32"
