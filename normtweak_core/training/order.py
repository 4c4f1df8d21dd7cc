"""The order in which a training reads its windows."""

import torch

from normtweak_core.randomness import generator


def window_order(
    num_windows: int, batch: int, seed: int, step: int, purpose: str = "training order"
) -> list[int]:
    """Return which windows a step reads: shuffled anew each epoch, none twice inside one.

    Args:
        num_windows: Windows there are.
        batch: Windows of a step. Where there are fewer, each is read several times.
        seed: Of the recipe.
        step: Optimizer steps done before.
        purpose: Of the training, so that two of one recipe read in different orders.
    """
    chosen: list[int] = []
    position = step * batch
    while len(chosen) < batch:
        epoch, start = divmod(position, num_windows)
        order = torch.randperm(num_windows, generator=generator(seed, purpose, epoch))
        chosen += order[start : start + batch - len(chosen)].tolist()
        position = step * batch + len(chosen)
    return chosen
