"""The drift behind every block of a whole model: what both models see on the same tokens."""

import torch
from jaxtyping import Int64
from torch import Tensor

from normtweak_core.model.streaming import StreamedModel
from normtweak_core.quantization.drift import Drift, RunningDrift
from normtweak_core.vision.windows import ImageWindows


@torch.no_grad()
def model_drift(
    quantized: StreamedModel,
    float_model: StreamedModel,
    input_ids: Int64[Tensor, "samples seq"] | ImageWindows,
) -> list[Drift]:
    """Return the drift behind each block, in order, both models walked block by block.

    Args:
        quantized: Changed weights in the same architecture.
        float_model: The float model.
        input_ids: Windows without padding.

    Raises:
        NonFiniteError: A hidden state is NaN or infinite, or the float ones are zero everywhere.
    """
    found, windows = [], input_ids.split(1)
    for x_q, x_f in zip(quantized.walk(windows), float_model.walk(windows), strict=True):
        running = RunningDrift()
        for states, wanted in zip(x_q, x_f, strict=True):
            running.add(states, wanted)
        found.append(running.result())
    return found
