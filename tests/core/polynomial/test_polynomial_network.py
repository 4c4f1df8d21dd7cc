"""The network against plain formulas: float, rounded, and with a low-rank update."""

import math

import pytest
import torch

from normtweak_core.polynomial.config import WIDTHS, NetworkConfig
from normtweak_core.polynomial.network import (
    mean_level_distance,
    network_of,
    quantized,
    random_network,
    round_weight,
    with_lora,
)

SMALL = NetworkConfig(hidden_layers=2, hidden_width=24)


def plain_level(weight: list[list[float]], bits: float) -> list[list[float]]:
    """Round every weight by the formulas of seed 001 and BitNet, number by number."""
    everything = [abs(w) for row in weight for w in row]
    rounded = []
    for row in weight:
        mean, largest = sum(map(abs, row)) / len(row), max(map(abs, row))
        if bits == 1:
            rounded.append([mean if w >= 0 else -mean for w in row])
        elif bits == 1.58:
            scale = sum(everything) / len(everything)
            rounded.append([scale * max(-1, min(1, round(w / scale))) for w in row])
        else:
            scale = largest / (2 ** (int(bits) - 1) - 1)
            rounded.append([scale * round(w / scale) for w in row])
    return rounded


def plain_forward(state, inputs):
    x = inputs.double()
    for index in range(len(state) // 2):
        if index:
            x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        x = x @ state[f"layers.{index}.weight"].double().T + state[f"layers.{index}.bias"].double()
    return x


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_quantized_forward_is_the_slow_formula(seeded, bits):
    float_network = random_network(SMALL, seeded())
    network = quantized(float_network, bits)
    state = float_network.effective_state()
    for name, weight in state.items():
        if name.endswith("weight"):
            state[name] = torch.tensor(plain_level(weight.tolist(), bits))
    inputs = torch.rand(9, 14, generator=seeded(1))
    torch.testing.assert_close(
        network(inputs).double(), plain_forward(state, inputs), rtol=1e-4, atol=1e-5
    )


def test_the_float_forward_is_the_plain_formula(seeded):
    network = random_network(SMALL, seeded())
    inputs = torch.rand(9, 14, generator=seeded(1))
    expected = plain_forward(network.effective_state(), inputs)
    torch.testing.assert_close(network(inputs).double(), expected, rtol=1e-5, atol=1e-6)
    assert expected.shape == (9, 200)


@pytest.mark.parametrize(("bits", "levels"), [(8, 255), (4, 15), (2, 3), (1.58, 3), (1, 2)])
def test_a_row_has_as_many_levels_as_the_table_says(seeded, bits, levels):
    weight = torch.rand(4, 5000, generator=seeded()) * 2 - 1
    for row in round_weight(weight, bits):
        assert len(row.unique()) == levels


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_mean_level_distance_is_that_of_the_levels(seeded, bits):
    weight = torch.randn(4, 5000, generator=seeded())
    distances = [row.unique().diff().min().item() for row in round_weight(weight, bits)]
    expected = sum(distances) / len(distances)
    assert mean_level_distance(weight, bits) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("function", [round_weight, mean_level_distance])
def test_a_width_without_a_quantizer_is_refused(function):
    with pytest.raises(ValueError, match=r"must be 1, 1\.58 or a whole number to 8; found 2\.5"):
        function(torch.ones(2, 2), 2.5)


def test_gradients_pass_straight_through_the_rounding(seeded):
    float_network = random_network(SMALL, seeded())
    network = quantized(float_network, 1.58)
    inputs = torch.rand(5, 14, generator=seeded(1))
    network(inputs).square().sum().backward()
    rounded = network_of(network.effective_state())
    rounded(inputs).square().sum().backward()
    for ours, plain in zip(network.layers, rounded.layers, strict=True):
        assert torch.equal(ours.weight.grad, plain.weight.grad)
        assert torch.equal(ours.bias.grad, plain.bias.grad)


@pytest.mark.parametrize("bits", [8, 1.58])
def test_nothing_but_rounded_weights_is_left_at_inference(seeded, bits):
    network = with_lora(random_network(SMALL, seeded()), bits, 3, seeded(2))
    for layer in network.layers:
        layer.lora_b.data.uniform_(-0.1, 0.1, generator=seeded(3))
    state = network.effective_state()
    assert sorted(state) == sorted(random_network(SMALL, seeded()).state_dict())
    inputs = torch.rand(9, 14, generator=seeded(1))
    assert torch.equal(network_of(state)(inputs), network(inputs))
    for layer in network.layers:
        merged = layer.weight + layer.lora_b @ layer.lora_a
        assert torch.equal(layer.effective_weight(), round_weight(merged, bits))


def test_a_lora_starts_at_the_rounded_network_and_trains_itself_alone(seeded):
    base = random_network(SMALL, seeded())
    network = with_lora(base, 2, 3, seeded(2))
    inputs = torch.rand(9, 14, generator=seeded(1))
    assert torch.equal(network(inputs), quantized(base, 2)(inputs))
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {f"layers.{i}.lora_{part}" for i in range(3) for part in "ab"}
    network(inputs).square().sum().backward()
    layer = network.layers[1]
    assert layer.weight.grad is None
    assert float(layer.lora_b.grad.abs().max()) > 0


def test_the_start_is_uniform_within_torchs_bound_and_seeded(seeded):
    state = torch.get_rng_state()
    network = random_network(NetworkConfig(hidden_layers=1, hidden_width=300), seeded())
    assert torch.equal(state, torch.get_rng_state())
    for layer, fan_in in zip(network.layers, (14, 300), strict=True):
        bound = 1 / math.sqrt(fan_in)
        assert bound * 0.99 < layer.weight.abs().max().item() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    again = random_network(NetworkConfig(hidden_layers=1, hidden_width=300), seeded())
    assert torch.equal(network.layers[1].bias, again.layers[1].bias)
