"""Distances between the float and the quantized output of a block.

Source: ``channel`` is L_dist of Norm Tweaking (arXiv 2309.02784): per channel the absolute
difference of means plus that of variances, averaged over channels. ``mse`` and ``kl`` are the
alternatives its ablation compares with; ``kl`` is taken over the softmax of the channels of each
token, since the paper's form is not published in anything we could read.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def channel_loss(
    target: Float[Tensor, "tokens channels"], output: Float[Tensor, "tokens channels"]
) -> Float[Tensor, ""]:
    """Return ``1/C sum_c |mu_f - mu_q| + |var_f - var_q|``, statistics over tokens, unbiased."""
    means = (target.mean(dim=0) - output.mean(dim=0)).abs()
    variances = (target.var(dim=0) - output.var(dim=0)).abs()
    return (means + variances).mean()


def mse_loss(
    target: Float[Tensor, "tokens channels"], output: Float[Tensor, "tokens channels"]
) -> Float[Tensor, ""]:
    """Return the mean squared difference."""
    return (target - output).square().mean()


def kl_loss(
    target: Float[Tensor, "tokens channels"], output: Float[Tensor, "tokens channels"]
) -> Float[Tensor, ""]:
    """Return ``KL(softmax(target) || softmax(output))`` over channels, averaged over tokens."""
    log_target, log_output = target.log_softmax(dim=-1), output.log_softmax(dim=-1)
    return (log_target.exp() * (log_target - log_output)).sum(dim=-1).mean()


LOSSES: dict[str, Loss] = {"channel": channel_loss, "mse": mse_loss, "kl": kl_loss}


def window_loss(loss: Loss, target: Tensor, output: Tensor) -> Tensor:
    """Return the loss of one window in float32; leading dimensions are flattened into tokens."""
    return loss(target.flatten(0, -2).to(torch.float32), output.flatten(0, -2).to(torch.float32))
