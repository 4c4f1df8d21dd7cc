"""Activations rounded to 8 bits, one scale per token, as readers of compressed-tensors round them.

Whatever runs a quantized linear runs it through `round_inputs`: statistics, propagation, trainings,
evaluation, and the proof of an export.
"""

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor, finfo, nn

from normtweak_core.ternary.quantizers import straight_through

HALF_RANGE = 127.5  # of -128 .. 127
MARK = "rounds_inputs"  # attribute of the linears that read rounded activations


def rounded_tokens(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """Return activations rounded to the grid ``-128 .. 127`` times ``max|x| / 127.5`` of the token.

    The numbers of compressed-tensors 0.20 (`forward_quantize` with dynamic, symmetric int8 of the
    strategy token), operation by operation, in the dtype of ``x``; a token of zeros has the scale
    eps. Its tokens are told apart by the first two dimensions: where there are no others, all of
    ``x`` is one token.
    """
    values = x.detach()
    scale = values.abs().amax(dim=tuple(range(2, values.dim())), keepdim=True) / HALF_RANGE
    scale = scale.masked_fill_(scale == 0, finfo(scale.dtype).eps)
    return (values / scale).clamp_(-128, 127).round_().mul_(scale)


def round_inputs(module: nn.Module, linears: Iterable[str]) -> None:
    """Let linears of a block or model read rounded activations from now on, by their names in it.

    Gradients pass straight through the rounding (STE). What watches the inputs of a linear from
    later on sees them rounded. A deep copy rounds as well.
    """
    for name in linears:
        linear = module.get_submodule(name)
        if not getattr(linear, MARK, False):
            setattr(linear, MARK, True)
            linear.register_forward_pre_hook(_round)


def put_linear(module: nn.Module, name: str, linear: nn.Module) -> None:
    """Put another linear in the place of one; it reads what that one reads, rounded or not."""
    rounds = getattr(module.get_submodule(name), MARK, False)
    module.set_submodule(name, linear)
    if rounds:
        round_inputs(module, [name])


def _round(linear: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *rest = args
    return (straight_through(x, rounded_tokens(x)), *rest)
