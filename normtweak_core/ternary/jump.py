"""How far surgery alone moves a model, before any training."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Int64
from torch import Tensor, nn

from normtweak_core.model.structure import find_blocks, find_linears
from normtweak_core.ternary.config import TernaryConfig
from normtweak_core.ternary.linear import normalize
from normtweak_core.ternary.surgery import SurgeryPlan, apply_surgery, set_lambdas
from normtweak_core.training.objective import mean_loss


def surgery_losses(
    model: nn.Module,
    plan: SurgeryPlan,
    config: TernaryConfig,
    windows: Int64[Tensor, "samples seq"],
) -> dict[str, float]:
    """Return the loss of a model before, between and after the cuts, in nats per token.

    ``float``: as it was. ``norms_without_care``: norms of gain one before every linear, as the
    paper's artefacts insert them. ``norms``: ours, all at once. ``step_0``: at lambda 0, as the
    recipe lets them come in. ``ternary``: lambda 1, rounded to nearest, before any training.
    """
    losses = {"float": mean_loss(model, windows)}
    if config.norm == "rms":
        with _plain_norms(model, plan.eps):
            losses["norms_without_care"] = mean_loss(model, windows)
    apply_surgery(model, plan, config)
    blocks = len(plan.blocks)
    if config.norm == "rms":
        set_lambdas(model, [0.0] * blocks, ramp_norm=False)
        losses["norms"] = mean_loss(model, windows)
    set_lambdas(model, [0.0] * blocks, config.ramp_norm)
    losses["step_0"] = mean_loss(model, windows)
    set_lambdas(model, [1.0] * blocks, config.ramp_norm)
    losses["ternary"] = mean_loss(model, windows)
    return losses


@contextmanager
def _plain_norms(model: nn.Module, eps: float) -> Iterator[None]:
    handles = [
        linear.register_forward_pre_hook(lambda _, args: (normalize(args[0], eps, 1.0, 1.0),))
        for block in find_blocks(model).modules
        for linear in find_linears(block).values()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
