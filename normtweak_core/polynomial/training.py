"""The training loop of the study: Adam, cosine to zero, resumable at any step to the same bytes.

The order of the samples follows from the seed and the epoch. Checkpoints are those of
`normtweak_core.training`.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from normtweak_core.errors import NonFiniteError
from normtweak_core.polynomial.data import Samples, grid
from normtweak_core.polynomial.network import PolynomialNetwork
from normtweak_core.randomness import generator
from normtweak_core.training.checkpoint import TrainingState, newest_state

log = logging.getLogger(__name__)

MOMENTS = ("exp_avg", "exp_avg_sq")  # what Adam keeps of each parameter
SAVE_SECONDS = 20.0  # the most that a kill loses; a checkpoint of the full network is 11 MB
TEST_BATCH = 4096  # samples a forward pass of the test takes

Advance = Callable[[int, int], None]  # steps done, of how many


@dataclass(frozen=True)
class Schedule:
    """How long a training is, and what it sees."""

    epochs: float | int
    batch: int
    seed: int
    purpose: str  # names the order of the samples
    evaluations: int  # test losses on the way, the last one included

    def steps(self, num_samples: int) -> int:
        """Return the number of steps over so many samples, at least one."""
        return max(1, round(self.epochs * self.steps_per_epoch(num_samples)))

    def steps_per_epoch(self, num_samples: int) -> int:
        """Return the full batches of one epoch; an incomplete last one is left out."""
        return num_samples // self.batch

    def evaluated(self, num_samples: int) -> list[int]:
        """Return after which steps the test loss is taken."""
        steps = self.steps(num_samples)
        count = min(self.evaluations, steps)
        return [round(steps * (i + 1) / count) for i in range(count)]


@dataclass(frozen=True)
class Checkpoints:
    """Where a training keeps its checkpoints."""

    folder: Path
    origin: str  # what the training is; a checkpoint of another one is passed over
    seconds: float | int = SAVE_SECONDS  # between two


def rate_at(step: int, steps: int) -> float:
    """Return the share of the starting rate that a step takes: a cosine from one to zero.

    Ours: the source gives rates at the start and no schedule.
    """
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def train(
    network: PolynomialNetwork,
    rates: dict[str, float],
    training: Samples,
    test: Samples,
    schedule: Schedule,
    checkpoints: Checkpoints | None = None,
    advance: Advance = lambda done, total: None,
) -> list[tuple[int, float]]:
    """Train in place, from the newest checkpoint if there is one, and return the test losses.

    Args:
        network: Trained where a parameter requires a gradient.
        rates: Learning rate at the start, by parameter name, of every trained parameter.
        training: Samples to learn from, on the network's device; at least one batch.
        test: Samples of the test loss, likewise.
        schedule: Length, batches and order.
        checkpoints: Where to keep them; None: nowhere.
        advance: Is told of every step, after a checkpoint was written.

    Returns:
        Steps done and test loss: before the first step, and on the way as often as scheduled.

    Raises:
        NonFiniteError: The test loss is NaN or infinite.
        ValueError: There are fewer samples than a batch takes.
    """
    if len(training) < schedule.batch:
        raise ValueError(
            f"a batch of {schedule.batch} needs as many samples; found {len(training)}"
        )
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = _optimizer(trained, rates)
    steps, evaluated = schedule.steps(len(training)), schedule.evaluated(len(training))
    step, losses = 0, []
    if checkpoints is not None:
        step, losses = _resume(trained, optimizer, checkpoints, steps)
    losses = losses or [mean_loss(network, test)]
    order = _Order(training, schedule)
    saved = time.monotonic()
    while step < steps:
        _take_step(network, optimizer, order, step, steps)
        step += 1
        if step in evaluated:
            losses.append(mean_loss(network, test))
        if checkpoints is not None and time.monotonic() - saved >= checkpoints.seconds:
            _save(trained, optimizer, checkpoints, step, losses)
            saved = time.monotonic()
        advance(step, steps)
    return list(zip([0, *evaluated], losses, strict=True))


def _optimizer(trained: dict[str, Tensor], rates: dict[str, float]) -> torch.optim.Adam:
    by_rate: dict[float, list[Tensor]] = {}  # few groups: each costs a call a step
    for name, parameter in trained.items():
        by_rate.setdefault(rates[name], []).append(parameter)
    groups = [{"params": some, "lr": rate, "peak": rate} for rate, some in by_rate.items()]
    return torch.optim.Adam(groups, fused=True)


def _save(
    trained: dict[str, Tensor],
    optimizer: torch.optim.Adam,
    checkpoints: Checkpoints,
    step: int,
    losses: list[float],
) -> None:
    moments = {
        moment: {name: optimizer.state[parameter][moment] for name, parameter in trained.items()}
        for moment in MOMENTS
    }
    state = TrainingState(step, dict(trained), moments, losses, seconds=0.0)
    state.save(checkpoints.folder, checkpoints.origin)


def _resume(
    trained: dict[str, Tensor],
    optimizer: torch.optim.Adam,
    checkpoints: Checkpoints,
    steps: int,
) -> tuple[int, list[float]]:
    """Restore weights and moments; return the steps done and the test losses so far."""
    state = newest_state(checkpoints.folder, checkpoints.origin, at_most=steps)
    if state is None:
        return 0, []
    for name, parameter in trained.items():
        parameter.data.copy_(state.weights[name])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.step), device=parameter.device)
        } | {moment: state.moments[moment][name].to(parameter.device) for moment in MOMENTS}
    log.info("going on from step %d of %d", state.step, steps)
    return state.step, state.losses


class _Order:
    """The samples of every step: shuffled anew each epoch, none repeated inside one."""

    def __init__(self, samples: Samples, schedule: Schedule):
        self.samples, self.schedule = samples, schedule
        self.device = samples.inputs.device
        self.abscissas = grid().to(self.device)
        self.epoch, self.chosen = -1, torch.empty(0)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets."""
        size = self.schedule.batch
        epoch, position = divmod(step, self.schedule.steps_per_epoch(len(self.samples)))
        if epoch != self.epoch:
            random = generator(self.schedule.seed, self.schedule.purpose, epoch)
            order = torch.randperm(len(self.samples), generator=random)
            self.epoch, self.chosen = epoch, order.to(self.device)
        rows = self.chosen[position * size : (position + 1) * size]
        return self.samples.inputs[rows], targets(self.samples.curves[rows], self.abscissas)


def _take_step(
    network: PolynomialNetwork, optimizer: torch.optim.Adam, order: _Order, step: int, steps: int
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate_at(step, steps)
    inputs, wanted = order.batch(step)
    loss = mse_loss(network(inputs), wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def targets(
    curves: Float[Tensor, "batch 100"], abscissas: Float[Tensor, "100"]
) -> Float[Tensor, "batch 200"]:
    """Return what the network learns: both coordinates of every point, abscissas first.

    The abscissas are always the same; the source adds them as something easy, so that the network
    has room to lose precision.
    """
    return torch.cat([abscissas.expand(len(curves), -1), curves], dim=1)


@torch.no_grad()
def mean_loss(network: PolynomialNetwork, test: Samples) -> float:
    """Return the mean square error over all outputs of all samples.

    Raises:
        NonFiniteError: It is NaN or infinite.
    """
    abscissas = grid().to(test.inputs.device)
    total = torch.zeros((), dtype=torch.float64, device=test.inputs.device)
    for start in range(0, len(test), TEST_BATCH):
        rows = slice(start, start + TEST_BATCH)
        wanted = targets(test.curves[rows], abscissas)
        total += (network(test.inputs[rows]) - wanted).double().square().mean(dim=1).sum()
    loss = total.item() / len(test)
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"a training must keep its test loss finite; found {loss}: lower its learning rate."
        )
    return loss
