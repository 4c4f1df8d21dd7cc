"""The two streams between blocks: what the float and the quantized model see of each window.

The last windows are held out: they serve neither Hessians nor gradients, and judge what both made.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.distributed.ranks import ALONE, Ranks
from normtweak_core.distributed.tree import leaves_of, own_micro_batches
from normtweak_core.quantization.linears.inputs import RunBlock
from normtweak_core.vision.windows import Windows

# Tokens per micro-batch of forward passes: bounds memory, follows from the recipe alone.
TOKENS_PER_MICRO_BATCH = 4096
HELD_OUT_SHARE = 8  # the last eighth of the windows


@dataclass(frozen=True)
class Streams:
    """Hidden states of all calibration windows at one block boundary.

    Where several processes work on a block they see the same tensors, in memory that they share.
    """

    x_f: Float[Tensor, "samples seq hidden"]  # of the float model
    x_q: Float[Tensor, "samples seq hidden"]  # of the quantized model
    # Room for as much again, by what it is for; what is not here is made anew.
    spare: dict[str, Float[Tensor, "samples seq hidden"]] = field(default_factory=dict)

    @property
    def num_training(self) -> int:
        """Windows before the held-out ones."""
        return num_training_windows(len(self.x_f))

    def room(self, purpose: str) -> Float[Tensor, "samples seq hidden"]:
        """Return a tensor like a stream, to be written to."""
        return self.spare[purpose] if purpose in self.spare else torch.empty_like(self.x_q)


def num_training_windows(samples: int) -> int:
    """Return how many of the first windows serve Hessians and gradients."""
    return samples - max(1, samples // HELD_OUT_SHARE)


def micro_batches(windows: Windows) -> list[slice]:
    """Return the slices of windows that go through a block together.

    Training and held-out windows are in different ones.
    """
    size = max(1, TOKENS_PER_MICRO_BATCH // windows.shape[1])
    training, total = num_training_windows(len(windows)), len(windows)
    starts = [*range(0, training, size), *range(training, total, size)]
    return [slice(i, j) for i, j in zip(starts, [*starts[1:], total], strict=True)]


@dataclass(frozen=True)
class Share:
    """The micro-batches of one process; all of one by itself."""

    training: list[slice]
    leaves: list[int]  # of the tree of sums, which each of these is in
    held_out: list[slice]

    @property
    def parts(self) -> list[slice]:
        """All of them."""
        return [*self.training, *self.held_out]


def share_of(windows: Tensor, ranks: Ranks) -> Share:
    """Return which micro-batches are this process': whole ones, whose results have the same bits.

    Those that serve Hessians go by leaves of the tree that these are summed in.
    """
    parts = micro_batches(windows)
    count = sum(part.stop <= num_training_windows(len(windows)) for part in parts)
    training, held_out = parts[:count], parts[count:]
    own, leaves = own_micro_batches(count, ranks), leaves_of(count)
    return Share(
        [training[i] for i in own],
        [leaves[i] for i in own],
        [held_out[i] for i in ranks.share(len(held_out))],
    )


@torch.no_grad()
def run_stream(
    block: nn.Module,
    hidden: Tensor,
    run: RunBlock,
    into: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Return the block's output for all windows, micro-batch by micro-batch.

    Args:
        block: Runs.
        hidden: What the stream holds in front of it.
        run: Runs a block on a micro-batch of windows.
        into: Where the output goes, on the CPU; None: into a new tensor.
        ranks: Who does it; of several each writes its share.
    """
    into = torch.empty_like(hidden, device="cpu") if into is None else into
    for part in share_of(hidden, ranks).parts:
        into[part] = run(block, hidden[part])
    ranks.meet()
    return into
