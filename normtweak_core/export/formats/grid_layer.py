"""What a quantized linear on a grid must be, whatever the format that stores it."""

import torch

from normtweak_core.errors import NonFiniteError
from normtweak_core.quantization.weight import QuantizedWeight


def check_layer(module: str, layer: QuantizedWeight, dtype: torch.dtype) -> None:
    """Accept a linear that is the same one after its scales were stored in ``dtype``.

    Raises:
        NonFiniteError: A scale is NaN, infinite or zero.
        ValueError: The scales are not numbers of the float type, or a symmetric layer's zeros are
            not in the middle.
    """
    scales = layer.scales
    if not (scales.isfinite().all() and (scales != 0).all()):
        raise NonFiniteError(f"scales must be finite and not zero; those of {module} are not")
    if not torch.equal(scales.to(dtype).to(torch.float32), scales):
        raise ValueError(
            f"scales must be numbers that {str(dtype).removeprefix('torch.')} holds; those of "
            f"{module} are not. Round them with round_scale before quantizing."
        )
    if layer.symmetric and not (layer.zeros == 2 ** (layer.bits - 1)).all():
        raise ValueError(f"a symmetric layer's zeros must be 2**(bits-1); {module} differs")
