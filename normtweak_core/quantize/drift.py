"""How far the quantized stream has drifted from the float stream behind a block.

Source: the diagnostic of Li et al. 2023, Norm Tweaking, https://arxiv.org/abs/2309.02784: the mean
difference between quantized and float outputs, block by block, which accumulates with depth.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from normtweak_core.errors import NonFiniteError

TINY = 1e-20  # in the place of a token's |target|^2 where that is zero


@dataclass(frozen=True)
class Drift:
    """Difference ``x_q - x_f`` over all tokens behind one block."""

    relative_norm: float  # |x_q - x_f| / |x_f|
    mean_shift: float  # mean over channels of |mean over tokens of x_q - x_f|


@torch.no_grad()
def drift(
    x_q: Float[Tensor, "samples seq hidden"], x_f: Float[Tensor, "samples seq hidden"]
) -> Drift:
    """Return the drift between two streams, summed in float64, a window at a time.

    Raises:
        NonFiniteError: A hidden state is NaN or infinite, or the float stream is zero everywhere,
            so that nothing is relative to it.
    """
    difference = reference = 0.0
    shift = torch.zeros(x_f.shape[-1], dtype=torch.float64)
    for quantized, wanted in zip(x_q, x_f, strict=True):
        delta = quantized.double() - wanted.double()
        difference += delta.square().sum().item()
        reference += wanted.double().square().sum().item()
        shift += delta.sum(dim=0).cpu()
    if not math.isfinite(difference + reference):
        raise NonFiniteError(
            "hidden states must be finite; found NaN or infinity in the stream behind a block: "
            "check the weights of the model, or run it in a wider dtype"
        )
    if reference == 0:
        raise NonFiniteError(
            "drift is measured relative to the float stream, which is zero everywhere: check the "
            "weights of the float model"
        )
    tokens = x_f.shape[0] * x_f.shape[1]
    return Drift(math.sqrt(difference / reference), (shift / tokens).abs().mean().item())


def token_distance(
    output: Float[Tensor, "samples seq hidden"], target: Float[Tensor, "samples seq hidden"]
) -> Float[Tensor, ""]:
    """Return the mean over tokens of |output - target|^2 / |target|^2, in float32.

    Token by token, as the norms of the blocks behind see it: over all tokens together, the few
    with very large norms would decide.
    """
    wanted = target.to(output.device).float()
    size = wanted.square().sum(-1).clamp(min=TINY)
    return ((output.float() - wanted).square().sum(-1) / size).mean()
