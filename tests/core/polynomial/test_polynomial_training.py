"""The training loop against a plain one, and stopped at every step."""

import math

import pytest
import torch

from normtweak_core.errors import NonFiniteError
from normtweak_core.polynomial.config import (
    Cell,
    FloatTrainingConfig,
    GridConfig,
    LoraConfig,
    NetworkConfig,
    SamplesConfig,
    cells_of,
)
from normtweak_core.polynomial.data import grid, make_samples
from normtweak_core.polynomial.network import mean_level_distance, network_of, random_network
from normtweak_core.polynomial.study import make_setting, train_cell, train_float
from normtweak_core.polynomial.training import (
    Checkpoints,
    Schedule,
    mean_loss,
    rate_at,
    targets,
    train,
)
from normtweak_core.randomness import generator

SMALL = NetworkConfig(hidden_layers=1, hidden_width=8)
FLOAT = FloatTrainingConfig(epochs=2.5, batch=16, lr=1e-2)
GRID = GridConfig(epochs=1.5, batch=16)
CELLS = [
    Cell(bits=1.58, start="pretrained", lr=1e-2),
    Cell(bits=1.0, start="random", lr=1e-2),
    Cell(bits=2.0, start="pretrained", lr=0.5, rank=2),
]


@pytest.fixture(scope="module")
def setting():
    return make_setting(SamplesConfig(train=70, test=30), SMALL, 0, 3, "cpu")


@pytest.fixture(scope="module")
def pretrained(setting):
    return train_float(setting, FLOAT, None, lambda done, total: None)


def same(one, other) -> bool:
    return one.curve == other.curve and all(
        torch.equal(one.state[name], other.state[name]) for name in one.state
    )


class StoppedError(Exception):
    pass


def stop_at(step):
    def advance(done, total):
        if done == step:
            raise StoppedError

    return advance


def test_training_is_adam_on_the_mean_square_error_with_a_cosine():
    samples, test = make_samples(40, 6, 0, "training"), make_samples(20, 6, 0, "test")
    schedule = Schedule(2, 16, 5, "order", 2)
    network = random_network(SMALL, generator(0, "start"))
    rates = {name: 1e-2 if "weight" in name else 1e-3 for name, _ in network.named_parameters()}
    curve = train(network, rates, samples, test, schedule)

    plain = random_network(SMALL, generator(0, "start"))
    moments = {name: (0.0, 0.0) for name, _ in plain.named_parameters()}
    for step in range(4):
        epoch, position = divmod(step, 2)  # 40 samples: two full batches
        order = torch.randperm(40, generator=generator(5, "order", epoch))
        rows = order[16 * position : 16 * position + 16]
        wanted = torch.cat([grid().expand(16, -1), samples.curves[rows]], dim=1)
        plain.zero_grad()
        (plain(samples.inputs[rows]) - wanted).square().mean().backward()
        for name, parameter in plain.named_parameters():
            g = parameter.grad
            first, second = moments[name]
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            moments[name] = first, second
            rate = rates[name] * (1 + math.cos(math.pi * step / 4)) / 2
            t = step + 1
            scaled = (second / (1 - 0.999**t)).sqrt() + 1e-8
            parameter.data -= rate * (first / (1 - 0.9**t)) / scaled
    for ours, expected in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    assert [step for step, _ in curve] == [0, 2, 4]
    assert curve[-1][1] == mean_loss(network, test)


def test_the_test_loss_is_the_mean_over_everything(seeded):
    network = random_network(SMALL, seeded())
    test = make_samples(5000, 6, 0, "test")  # more than one batch of the test
    with torch.no_grad():
        wanted = targets(test.curves, grid())
        expected = (network(test.inputs) - wanted).double().square().mean().item()
    assert mean_loss(network, test) == pytest.approx(expected, rel=1e-6)
    assert torch.equal(wanted[3, :100], grid())


def test_a_cosine_from_one_to_zero():
    assert [rate_at(step, 4) for step in (0, 2, 4)] == pytest.approx([1, 0.5, 0])


def test_epochs_may_be_fractions_and_a_training_has_a_step():
    assert Schedule(0.2, 128, 0, "x", 8).steps(240_000) == 375
    assert Schedule(41, 256, 0, "x", 8).steps(2_000_000) == 41 * 7812
    assert Schedule(0.001, 16, 0, "x", 8).steps(70) == 1
    assert Schedule(1, 16, 0, "x", 3).evaluated(160) == [3, 7, 10]
    assert Schedule(1, 16, 0, "x", 20).evaluated(32) == [1, 2]


@pytest.mark.parametrize("stopped", [1, 4, 5, 9, 10])
def test_a_float_training_that_is_stopped_ends_in_the_same_bytes(
    setting, pretrained, stopped, tmp_path
):
    checkpoints = Checkpoints(tmp_path, "a", seconds=0)
    with pytest.raises(StoppedError):
        train_float(setting, FLOAT, checkpoints, stop_at(stopped))
    seen = []
    resumed = train_float(setting, FLOAT, checkpoints, lambda done, total: seen.append(done))
    assert seen == list(range(stopped + 1, 11))  # nothing is done again
    assert same(resumed, pretrained)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_cell_that_is_stopped_ends_in_the_same_bytes(setting, pretrained, cell, tmp_path):
    whole = train_cell(setting, cell, GRID, pretrained.state, None, lambda done, total: None)
    checkpoints = Checkpoints(tmp_path, "a", seconds=0)
    with pytest.raises(StoppedError):
        train_cell(setting, cell, GRID, pretrained.state, checkpoints, stop_at(3))
    rest = train_cell(setting, cell, GRID, pretrained.state, checkpoints, lambda done, total: None)
    assert same(rest, whole)
    assert [step for step, _ in whole.curve] == [0, 2, 4, 6]
    assert whole.curve[-1][1] < whole.curve[0][1]


def test_between_the_seconds_nothing_is_saved(setting, tmp_path):
    with pytest.raises(StoppedError):
        train_float(setting, FLOAT, Checkpoints(tmp_path, "a", seconds=1000), stop_at(5))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_training_is_passed_over(setting, pretrained, tmp_path, caplog):
    with pytest.raises(StoppedError):
        train_float(setting, FLOAT, Checkpoints(tmp_path, "b", seconds=0), stop_at(5))
    begun = train_float(setting, FLOAT, Checkpoints(tmp_path, "a"), lambda done, total: None)
    assert same(begun, pretrained)
    assert "it belongs to another training" in caplog.text


def test_a_loss_that_is_not_finite_ends_the_training(setting):
    config = FloatTrainingConfig(epochs=1, batch=16, lr=1e30)
    with pytest.raises(NonFiniteError, match=r"must keep its test loss finite; found (nan|inf): "):
        train_float(setting, config, None, lambda done, total: None)


def test_fewer_samples_than_a_batch_are_refused(setting):
    config = FloatTrainingConfig(epochs=1, batch=71)
    with pytest.raises(ValueError, match="a batch of 71 needs as many samples; found 70"):
        train_float(setting, config, None, lambda done, total: None)


def test_a_random_start_is_the_one_the_float_training_had(setting):
    tiny = {"lr": 1e-30}
    cell = Cell(bits=8.0, start="random", **tiny)
    one = train_cell(setting, cell, GRID, None, None, lambda done, total: None)
    float_start = random_network(SMALL, generator(0, "polynomial start"))
    rounded = network_of(one.state)
    for layer, start in zip(rounded.layers, float_start.layers, strict=True):
        torch.testing.assert_close(layer.weight, start.weight, rtol=0, atol=2e-3)
        torch.testing.assert_close(layer.bias, start.bias, rtol=0, atol=1e-6)


def test_a_lora_keeps_biases_and_learns_in_steps_of_its_layers_levels(setting, pretrained):
    from normtweak_core.polynomial.network import with_lora
    from normtweak_core.polynomial.study import lora_rates

    before = {name: tensor.clone() for name, tensor in pretrained.state.items()}
    one = train_cell(setting, CELLS[2], GRID, pretrained.state, None, lambda done, total: None)
    assert all(torch.equal(before[name], pretrained.state[name]) for name in before)
    assert torch.equal(one.state["layers.0.bias"], before["layers.0.bias"])
    network = with_lora(network_of(before), 2, 2, generator(0, "x"))
    rates = lora_rates(network, 2, 0.5)
    for index in range(2):
        distance = mean_level_distance(before[f"layers.{index}.weight"], 2)
        assert rates[f"layers.{index}.lora_a"] == rates[f"layers.{index}.lora_b"] == distance / 2


def test_the_examples_are_outputs_before_and_after(setting, pretrained):
    cell = CELLS[0]
    one = train_cell(setting, cell, GRID, pretrained.state, None, lambda done, total: None)
    inputs = setting.test.inputs[:6]
    with torch.no_grad():
        assert torch.equal(one.examples_after, network_of(one.state)(inputs))
        assert torch.equal(pretrained.examples_after, network_of(pretrained.state)(inputs))
    assert not torch.equal(one.examples_before, one.examples_after)


def test_the_grid_has_every_cell_and_the_lora_one_a_width():
    cells = cells_of(GridConfig(), LoraConfig())
    assert len(cells) == 25 == len(set(cells))
    assert [cell.bits for cell in cells if cell.rank == 32] == [8, 4, 2, 1.58, 1]
    assert cells_of(GridConfig(bits=[2]), LoraConfig(enabled=False)) == [
        Cell(bits=2.0, start=start, lr=lr)
        for start in ("pretrained", "random")
        for lr in (1e-3, 1e-4)
    ]
