"""Gradient checkpointing: a block keeps its input alone, and is computed again when it is needed.

Ours, because transformers checkpoints in train mode only, and models are trained here in eval mode,
where there is no dropout and each pass gives the same bits.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(
    blocks: Iterable[nn.Module], release: Callable[[nn.Module], None] = lambda block: None
) -> None:
    """Have blocks, in place, compute their forward pass twice instead of keeping what it made.

    Losses and gradients stay the same bits.

    Args:
        blocks: Of the model that is trained.
        release: Called after the second pass of a block, to let go of tensors that it has noted.
    """
    for block in blocks:
        block.forward = functools.partial(_run, block, block.forward, release)


def _run(
    block: nn.Module,
    forward: Callable[..., Any],
    release: Callable[[nn.Module], None],
    *args: Any,
    **kwargs: Any,
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    passes = 0

    def compute(*given: Any, **named: Any) -> Any:
        nonlocal passes
        passes += 1
        try:
            return forward(*given, **named)
        finally:  # the second pass ends by an exception, as soon as it has all that is needed
            if passes > 1:
                release(block)

    # Models in eval mode draw no random numbers whose state would have to be kept.
    return checkpoint(compute, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
