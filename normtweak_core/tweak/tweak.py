"""Norm tweaking: train the norms of one quantized block so that its output resembles the float's.

Source: Li et al., Norm Tweaking, arXiv 2309.02784, Algorithm 1. Where we differ: a held-out slice
of the calibration set decides whether the tweak is kept, and the outputs passed on are computed
anew with the norms that were kept. Norms per attention head (q_norm, k_norm) are left alone.

Kept means: on held-out windows the loss and the distance |output - target| both fell. The second
condition is ours: channel statistics can agree better while every token is further off, and then
perplexity rises (docs/log.md has the numbers). The whole change, a half, a quarter and an eighth
of it are tried, and of those that pass the one with the least distance is kept: along the change
the distance falls and rises again, and the largest part that passes would lie where it has all
but risen back.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.distributed.ranks import ALONE, Ranks
from normtweak_core.errors import NonFiniteError
from normtweak_core.model.structure import find_norms
from normtweak_core.quantization.drift import token_distance
from normtweak_core.quantization.linears.inputs import RunBlock
from normtweak_core.tweak.config import NormTweakConfig
from normtweak_core.tweak.loss import LOSSES, window_loss
from normtweak_core.tweak.report import TweakReport

# Parts of the trained change that are tried on the held-out windows.
SHARES = (1.0, 0.5, 0.25, 0.125)


def tweak_rate(config: NormTweakConfig, index: int, num_blocks: int) -> float:
    """Return the learning rate of a block.

    ``linear`` is the paper's rule, ``lr * (1 + lr_scale * i / L)``: deeper blocks have more
    accumulated error to undo. The other shapes reach the same growth along another curve.
    """
    depth = index / num_blocks
    growth = {
        "constant": 0.0,
        "step": 0.0 if depth < 0.5 else 1.0,
        "linear": depth,
        "cosine": 0.5 * (1 - math.cos(math.pi * depth)),
    }
    if config.schedule == "exponential":
        return config.lr * (1 + config.lr_scale) ** depth
    return config.lr * (1 + config.lr_scale * growth[config.schedule])


def norm_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return gains and biases of all norms by name, those per attention head left out.

    Of a block, or of a whole model with its final norm.
    """
    return {
        f"{name}.{part}": parameter
        for name, norm in find_norms(module).items()
        if not norm.per_head
        for part, parameter in norm.module.named_parameters(recurse=False)
    }


@torch.no_grad()
def round_norms(block: nn.Module, dtype: torch.dtype) -> None:
    """Give every norm parameter the value that the export dtype can hold."""
    for parameter in norm_parameters(block).values():
        parameter.copy_(parameter.to(dtype))


def tweak_norms(
    block: nn.Module,
    x_q: Float[Tensor, "samples seq hidden"],
    target: Float[Tensor, "samples seq hidden"],
    num_training: int,
    run: RunBlock,
    config: NormTweakConfig,
    rate: float,
    export_dtype: torch.dtype,
    ranks: Ranks = ALONE,
) -> tuple[TweakReport, dict[str, Tensor]]:
    """Train the block's norms in place; put the old ones back if the held-out loss did not fall.

    Args:
        block: Quantized block. On return its norms are those kept, rounded to the export dtype.
        x_q: What the quantized model sees at the block's input.
        target: Float output the block should resemble.
        num_training: Windows to train on; the rest decides.
        run: Runs the block on one micro-batch.
        config: Loss, iterations, rollback.
        rate: Learning rate of this block.
        export_dtype: The held-out loss is measured with gains rounded to it.
        ranks: Who does it: the first one trains, since a step follows from the one before it, and
            the held-out windows are shared out. All return the same.

    Returns:
        The report and, if accepted, the float32 masters of the trained parameters. A block whose
        norms have no weights is left as it is, and the report says so.

    Raises:
        NonFiniteError: The loss became NaN or infinite.
    """
    parameters = norm_parameters(block)
    original = {name: p.detach().float().clone() for name, p in parameters.items()}
    before = held_out(block, x_q, target, num_training, run, config.loss, ranks)
    if not parameters:
        return _nothing_to_train(rate, before), {}
    trained = _train(block, x_q, target, num_training, run, config, rate, ranks)

    put = partial(_put, parameters, original, trained, export_dtype)
    tried: dict[float, HeldOut] = {}
    with torch.no_grad():
        for share in SHARES if config.rollback else (1.0,):
            put(share)
            tried[share] = held_out(block, x_q, target, num_training, run, config.loss, ranks)
        passed = [s for s, after in tried.items() if after.better_than(before)]
        nearest = min(passed or tried, key=lambda share: tried[share].distance)
        accepted = bool(passed) or not config.rollback
        masters = put(nearest if accepted else 0.0)
    report = TweakReport(
        lr=rate,
        held_out_before=before.loss,
        held_out_after=tried[nearest].loss,
        distance_before=before.distance,
        distance_after=tried[nearest].distance,
        accepted=accepted,
        share=nearest if accepted else 0.0,
    )
    return report, masters if accepted else {}


@torch.no_grad()
def _put(
    parameters: dict[str, nn.Parameter],
    original: dict[str, Tensor],
    trained: dict[str, Tensor],
    export_dtype: torch.dtype,
    share: float,
) -> dict[str, Tensor]:
    """Give norms a share of their change, rounded; return their float32 masters."""
    masters = {}
    for name, parameter in parameters.items():
        masters[name] = original[name] + share * (trained[name] - original[name])
        parameter.copy_(masters[name].to(export_dtype))
    return masters


def _nothing_to_train(rate: float, found: "HeldOut") -> TweakReport:
    return TweakReport(
        lr=rate,
        held_out_before=found.loss,
        held_out_after=found.loss,
        distance_before=found.distance,
        distance_after=found.distance,
        accepted=False,
        share=0.0,
        trained=False,
    )


class WithMasters(nn.Module):
    """A module that runs with float32 masters in place of some of its parameters.

    The masters are cast to each parameter's own dtype on the way in, so that a tweak smaller than
    half precision can hold still accumulates.
    """

    def __init__(self, module: nn.Module, masters: dict[str, Tensor]):
        """Wrap ``module``; its own parameters are neither read nor changed for these names."""
        super().__init__()
        self.module, self.masters = module, masters
        self._dtypes = {name: module.get_parameter(name).dtype for name in masters}

    def forward(self, *args, **kwargs):
        """Call the module with the masters."""
        cast = {name: master.to(self._dtypes[name]) for name, master in self.masters.items()}
        return torch.func.functional_call(self.module, cast, args, kwargs)


def _train(
    block: nn.Module,
    x_q: Tensor,
    target: Tensor,
    num_training: int,
    run: RunBlock,
    config: NormTweakConfig,
    rate: float,
    ranks: Ranks,
) -> dict[str, Tensor]:
    masters = {
        name: parameter.detach().float().clone().requires_grad_(True)
        for name, parameter in norm_parameters(block).items()
    }
    tuned = WithMasters(block, masters)
    optimizer = torch.optim.Adam(masters.values(), lr=rate)
    with torch.enable_grad():
        for step in range(config.iterations * num_training if ranks.is_first else 0):
            window = slice(step % num_training, step % num_training + 1)
            output = run(tuned, x_q[window])
            loss = window_loss(LOSSES[config.loss], target[window].to(output.device), output)
            if not torch.isfinite(loss):
                raise NonFiniteError(
                    f"the norm tweak's loss must be finite; found {loss.item()} at step {step}: "
                    f"lower norm_tweak.lr (now {rate:g})"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    trained = {name: master.detach() for name, master in masters.items()}
    for value in trained.values():
        ranks.agree(value)
    return trained


@dataclass(frozen=True)
class HeldOut:
    """How far the block's output is from its target on the windows that were not trained on."""

    loss: float  # the loss of the recipe, mean over windows
    distance: float  # root mean square over tokens of |output - target| / |target|

    def better_than(self, other: "HeldOut") -> bool:
        """Tell whether both numbers are lower."""
        return self.loss < other.loss and self.distance < other.distance


@torch.no_grad()
def held_out(
    block: nn.Module,
    x_q: Float[Tensor, "samples seq hidden"],
    target: Float[Tensor, "samples seq hidden"],
    num_training: int,
    run: RunBlock,
    loss: str,
    ranks: Ranks = ALONE,
) -> HeldOut:
    """Return what the windows behind the training ones say, one window at a time."""
    windows = len(x_q) - num_training
    found = torch.zeros(windows, 2, dtype=torch.float64)  # of each window: loss, squared distance
    own = ranks.share(windows)
    for place in own:
        part = slice(num_training + place, num_training + place + 1)
        output = run(block, x_q[part]).float()
        wanted = target[part].to(output.device).float()
        found[place, 0] = window_loss(LOSSES[loss], wanted, output).item()
        found[place, 1] = token_distance(output, wanted).item()
    for rank, (sent,) in enumerate(ranks.collected([found[own.start : own.stop]])):
        of_rank = ranks.share(windows, rank)
        found[of_rank.start : of_rank.stop] = sent
    ranks.agree(found)
    total, squares = (sum(values) for values in found.T.tolist())  # in the order of the windows
    return HeldOut(total / windows, (squares / windows) ** 0.5)
