"""The trainings of the study: the float one, and one of a quantized network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from normtweak_core.polynomial.config import (
    EXAMPLES,
    Cell,
    FloatTrainingConfig,
    GridConfig,
    NetworkConfig,
    SamplesConfig,
)
from normtweak_core.polynomial.data import Samples, make_samples
from normtweak_core.polynomial.network import (
    PolynomialNetwork,
    mean_level_distance,
    network_of,
    quantized,
    random_network,
    with_lora,
)
from normtweak_core.polynomial.training import Advance, Checkpoints, Schedule, train
from normtweak_core.randomness import generator


@dataclass(frozen=True)
class Setting:
    """What every training of a study shares."""

    training: Samples
    test: Samples
    network: NetworkConfig
    seed: int
    evaluations: int


@dataclass(frozen=True)
class Outcome:
    """What came of a training."""

    state: dict[str, Tensor]  # what inference needs, on the CPU
    curve: list[tuple[int, float]]  # steps done, test loss; the first is before training
    examples_before: Tensor  # outputs for the first samples of the test set, (examples, 200)
    examples_after: Tensor


def make_setting(
    samples: SamplesConfig, network: NetworkConfig, seed: int, evaluations: int, device: str
) -> Setting:
    """Return a setting with its samples made, on a device."""
    sets = [
        make_samples(count, samples.degree, seed, purpose)
        for count, purpose in ((samples.train, "training"), (samples.test, "test"))
    ]
    moved = [Samples(one.inputs.to(device), one.curves.to(device)) for one in sets]
    return Setting(moved[0], moved[1], network, seed, evaluations)


def train_float(
    setting: Setting, config: FloatTrainingConfig, checkpoints: Checkpoints | None, advance: Advance
) -> Outcome:
    """Return the float network after its training.

    Args:
        setting: Samples, network, seed.
        config: Length, batch and rate.
        checkpoints: Where they are kept, and taken up again.
        advance: Is told of every step.

    Raises:
        NonFiniteError: The test loss became NaN or infinite.
    """
    network = random_network(setting.network, generator(setting.seed, "polynomial start"))
    schedule = Schedule(
        config.epochs, config.batch, setting.seed, "polynomial order", setting.evaluations
    )
    rates = {name: config.lr for name, _ in network.named_parameters()}
    return _trained(network, rates, setting, schedule, checkpoints, advance)


def train_cell(
    setting: Setting,
    cell: Cell,
    grid: GridConfig,
    pretrained: dict[str, Tensor] | None,
    checkpoints: Checkpoints | None,
    advance: Advance,
) -> Outcome:
    """Return the quantized network of a cell after its training.

    The random start is the one that the float training had. All cells see the same samples in the
    same order.

    Args:
        setting: Samples, network, seed.
        cell: Width, start and rate.
        grid: Length and batch of all cells.
        pretrained: State of the float network; read where the cell starts with it.
        checkpoints: Where they are kept, and taken up again.
        advance: Is told of every step.

    Raises:
        NonFiniteError: The test loss became NaN or infinite.
        ValueError: There is no quantizer for the width.
    """
    if cell.start == "pretrained":
        assert pretrained is not None
        start = network_of({name: tensor.clone() for name, tensor in pretrained.items()})
    else:
        start = random_network(setting.network, generator(setting.seed, "polynomial start"))
    if cell.rank is None:
        network = quantized(start, cell.bits)
        rates = {name: cell.lr for name, _ in network.named_parameters()}
    else:
        network = with_lora(start, cell.bits, cell.rank, generator(setting.seed, "polynomial lora"))
        rates = lora_rates(network, cell.bits, cell.lr)
    schedule = Schedule(
        grid.epochs, grid.batch, setting.seed, "polynomial cell order", setting.evaluations
    )
    return _trained(network, rates, setting, schedule, checkpoints, advance)


def lora_rates(
    network: PolynomialNetwork, bits: float | int, lr_scale: float | int
) -> dict[str, float]:
    """Return the learning rate of every LoRA: so many mean level distances of its base weight.

    Source: EfficientDM's released code (arXiv 2310.03270), where the factor is 1/2500.
    """
    return {
        f"layers.{index}.{name}": lr_scale * mean_level_distance(layer.weight, bits)
        for index, layer in enumerate(network.layers)
        for name in ("lora_a", "lora_b")
    }


def _trained(
    network: PolynomialNetwork,
    rates: dict[str, float],
    setting: Setting,
    schedule: Schedule,
    checkpoints: Checkpoints | None,
    advance: Advance,
) -> Outcome:
    network.to(setting.training.inputs.device)
    before = _examples(network, setting)
    curve = train(network, rates, setting.training, setting.test, schedule, checkpoints, advance)
    weights = {name: tensor.cpu() for name, tensor in network.effective_state().items()}
    return Outcome(weights, curve, before, _examples(network, setting))


@torch.no_grad()
def _examples(network: PolynomialNetwork, setting: Setting) -> Tensor:
    return network(setting.test.inputs[:EXAMPLES]).cpu()
