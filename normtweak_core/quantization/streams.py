"""The two streams between blocks: what the float and the quantized model see of each window.

The last windows are held out: they serve neither Hessians nor gradients, and judge what both made.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.quantization.linears.inputs import RunBlock

# Tokens per micro-batch of forward passes: bounds memory, follows from the recipe alone.
TOKENS_PER_MICRO_BATCH = 4096
HELD_OUT_SHARE = 8  # the last eighth of the windows


@dataclass(frozen=True)
class Streams:
    """Hidden states of all calibration windows at one block boundary."""

    x_f: Float[Tensor, "samples seq hidden"]  # of the float model
    x_q: Float[Tensor, "samples seq hidden"]  # of the quantized model

    @property
    def num_training(self) -> int:
        """Windows before the held-out ones."""
        return num_training_windows(len(self.x_f))


def num_training_windows(samples: int) -> int:
    """Return how many of the first windows serve Hessians and gradients."""
    return samples - max(1, samples // HELD_OUT_SHARE)


def micro_batches(windows: Tensor) -> list[slice]:
    """Return the slices of windows that go through a block together.

    Training and held-out windows are in different ones.
    """
    size = max(1, TOKENS_PER_MICRO_BATCH // windows.shape[1])
    training, total = num_training_windows(len(windows)), len(windows)
    starts = [*range(0, training, size), *range(training, total, size)]
    return [slice(i, j) for i, j in zip(starts, [*starts[1:], total], strict=True)]


@torch.no_grad()
def run_stream(block: nn.Module, hidden: Tensor, run: RunBlock) -> Tensor:
    """Return the block's output for all windows, micro-batch by micro-batch."""
    return torch.cat([run(block, hidden[part]).cpu() for part in micro_batches(hidden)])
