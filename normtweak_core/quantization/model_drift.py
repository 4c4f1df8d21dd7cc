"""The drift behind every block of a whole model: what both models see on the same tokens."""

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedModel

from normtweak_core.model.streaming import SEQUENCES
from normtweak_core.model.structure import find_blocks
from normtweak_core.quantization.drift import Drift, RunningDrift


@torch.no_grad()
def model_drift(
    quantized: PreTrainedModel,
    float_model: PreTrainedModel,
    input_ids: Int64[Tensor, "samples seq"],
) -> list[Drift]:
    """Return the drift behind each block, in order; hidden states of one window are in memory.

    Args:
        quantized: Changed weights in the same architecture, in eval mode. Not modified.
        float_model: The float model, on the same device.
        input_ids: Windows without padding.

    Raises:
        NonFiniteError: A hidden state is NaN or infinite, or the float ones are zero everywhere.
    """
    device = next(float_model.parameters()).device
    wanted: list[Tensor] = []
    blocks = find_blocks(float_model).modules
    running = [RunningDrift() for _ in blocks]

    def add(index: int, output: Any) -> None:
        running[index].add(_hidden(output), wanted[index])

    handles = [
        block.register_forward_hook(lambda _, args, output: wanted.append(_hidden(output)))
        for block in blocks
    ]
    handles += [
        block.register_forward_hook(lambda _, args, output, index=index: add(index, output))
        for index, block in enumerate(find_blocks(quantized).modules)
    ]
    try:
        for ids in input_ids.split(1):
            wanted.clear()
            # Without their heads: nobody looks at the logits.
            for model in (float_model, quantized):
                model.base_model(ids.to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [one.result() for one in running]


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, SEQUENCES) else output
