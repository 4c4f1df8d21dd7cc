"""The network of the polynomial study: float, with quantized weights, and with a LoRA inside.

The quantizers are those of `normtweak_core.ternary.quantizers`; weights alone are quantized, biases
and activations stay float, as in seed 001.

======  =======================  =======================================================
bits    quantizer                levels
======  =======================  =======================================================
8, 4    absmax per row           255 and 15
2       absmax per row           three: -m, 0, m with m the largest magnitude of the row
1.58    absmean per tensor       three: -s, 0, s with s the mean magnitude of the tensor
1       binary per row           two: -s, s with s the mean magnitude of the row
======  =======================  =======================================================

So 2 and 1.58 bits differ in their scale and not in the number of levels. The seed's formula gives
no levels at 1 bit (it divides by zero), so that BitNet's takes its place.
"""

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.polynomial.config import NetworkConfig
from normtweak_core.polynomial.data import GRID, POINTS
from normtweak_core.ternary.quantizers import (
    absmax,
    absmean,
    absmean_scale,
    binary,
    straight_through,
)

INPUTS, OUTPUTS = 2 * POINTS, 2 * GRID


def round_weight(weight: Float[Tensor, "out in"], bits: float | int) -> Float[Tensor, "out in"]:
    """Return the weight on the levels of a width, see the table above; no gradient passes.

    Raises:
        ValueError: There is no quantizer for the width.
    """
    if bits == 1:
        return binary(weight)
    return absmean(weight) if bits == 1.58 else absmax(weight, _whole(bits))


def mean_level_distance(weight: Float[Tensor, "out in"], bits: float | int) -> float:
    """Return how far neighbouring levels of a width lie apart, the mean over the rows.

    Raises:
        ValueError: There is no quantizer for the width.
    """
    if bits == 1:
        return 2 * absmean_scale(weight, per_row=True).mean().item()
    if bits == 1.58:
        return absmean_scale(weight).item()
    highest = 2 ** (_whole(bits) - 1) - 1
    return weight.detach().abs().amax(dim=1).mean().item() / highest


def _whole(bits: float | int) -> int:
    if bits != int(bits):
        raise ValueError(f"a width must be 1, 1.58 or a whole number to 8; found {bits:g}")
    return int(bits)


class FloatLinear(nn.Module):
    """A linear layer that multiplies with its weight as it is."""

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"]):
        """Take weight and bias as they are, without a copy."""
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def effective_weight(self) -> Float[Tensor, "out in"]:
        """Return the weight that the layer multiplies with."""
        return self.weight

    def forward(self, x: Float[Tensor, "batch in"]) -> Float[Tensor, "batch out"]:
        """Return ``x W^T + b`` with the effective weight."""
        return nn.functional.linear(x, self.effective_weight(), self.bias)


class QuantizedLinear(FloatLinear):
    """A linear layer that multiplies with its rounded weight and learns the latent one."""

    def __init__(
        self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"], bits: float | int
    ):
        """Take weight and bias as they are, without a copy.

        Raises:
            ValueError: There is no quantizer for the width.
        """
        super().__init__(weight, bias)
        round_weight(weight, bits)
        self.bits = bits

    def effective_weight(self) -> Float[Tensor, "out in"]:
        """Return the rounded weight, with the gradient of the latent one."""
        return straight_through(self.weight, round_weight(self.weight, self.bits))


class LoraLinear(QuantizedLinear):
    """A linear layer that multiplies with ``Q(W + B A)`` and learns A and B; W and bias are frozen.

    Source: EfficientDM (arXiv 2310.03270): A Kaiming-uniform, B
    zero, merged before quantization, so that nothing but the rounded weight is left at inference.
    Its base weight is the dequantized one; here it is the float one, which loses nothing.
    """

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"],
        bits: float | int,
        rank: int,
        random: torch.Generator,
    ):
        """Start where `QuantizedLinear` does: the update is zero until it is trained.

        Args:
            weight: Float weight, used as it is, without a copy.
            bias: Likewise.
            bits: Width of the rounded weight.
            rank: Of the update.
            random: A CPU generator for A.

        Raises:
            ValueError: There is no quantizer for the width.
        """
        super().__init__(weight, bias, bits)
        self.requires_grad_(False)
        bound = 1 / math.sqrt(weight.shape[1])  # Kaiming-uniform with a = sqrt(5), as released
        drawn = torch.rand(rank, weight.shape[1], generator=random) * 2 * bound - bound
        self.lora_a = nn.Parameter(drawn.to(weight.device))
        self.lora_b = nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def effective_weight(self) -> Float[Tensor, "out in"]:
        """Return the rounded merged weight, with the gradient of the merged one."""
        merged = self.weight + self.lora_b @ self.lora_a
        return straight_through(merged, round_weight(merged, self.bits))


class PolynomialNetwork(nn.Module):
    """Seven points go in, 100 points of the polynomial through them come out."""

    def __init__(self, layers: list[FloatLinear]):
        """Chain the layers, with a GELU between two."""
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs: Float[Tensor, "batch 14"]) -> Float[Tensor, "batch 200"]:
        """Return the abscissas, then the ordinates, of the fits."""
        *hidden, last = self.layers
        for layer in hidden:
            inputs = nn.functional.gelu(layer(inputs))
        return last(inputs)

    @torch.no_grad()
    def effective_state(self) -> dict[str, Tensor]:
        """Return copies of what inference needs: weights as multiplied with, and biases."""
        state = {}
        for index, layer in enumerate(self.layers):
            state[f"layers.{index}.weight"] = layer.effective_weight().detach().clone()
            state[f"layers.{index}.bias"] = layer.bias.detach().clone()
        return state


def random_network(config: NetworkConfig, random: torch.Generator) -> PolynomialNetwork:
    """Return a float network as torch would start it: uniform within ``1 / sqrt(inputs)``."""
    widths = [INPUTS, *[config.hidden_width] * config.hidden_layers, OUTPUTS]
    layers = []
    for fan_in, fan_out in itertools.pairwise(widths):
        bound = 1 / math.sqrt(fan_in)
        weight = torch.empty(fan_out, fan_in).uniform_(-bound, bound, generator=random)
        bias = torch.empty(fan_out).uniform_(-bound, bound, generator=random)
        layers.append(FloatLinear(weight, bias))
    return PolynomialNetwork(layers)


def network_of(state: dict[str, Tensor]) -> PolynomialNetwork:
    """Return the float network of a state as `PolynomialNetwork.effective_state` gives it."""
    return PolynomialNetwork(
        [
            FloatLinear(state[f"layers.{index}.weight"], state[f"layers.{index}.bias"])
            for index in range(len(state) // 2)
        ]
    )


def quantized(network: PolynomialNetwork, bits: float | int) -> PolynomialNetwork:
    """Return a network that trains the same parameters with their weights rounded to a width.

    Raises:
        ValueError: There is no quantizer for the width.
    """
    return PolynomialNetwork(
        [QuantizedLinear(layer.weight.data, layer.bias.data, bits) for layer in network.layers]
    )


def with_lora(
    network: PolynomialNetwork, bits: float | int, rank: int, random: torch.Generator
) -> PolynomialNetwork:
    """Return a network whose only trained part is a low-rank update of each rounded weight.

    Raises:
        ValueError: There is no quantizer for the width.
    """
    return PolynomialNetwork(
        [
            LoraLinear(layer.weight.data, layer.bias.data, bits, rank, random)
            for layer in network.layers
        ]
    )
