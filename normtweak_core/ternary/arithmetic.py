"""Whether readers of the BitNet format can compute a ternary linear in half precision.

They multiply the scale of a token's int8 numbers with that of the weight in the dtype of the model:
where the product leaves float16 they divide by infinity and give zeros. So each linear is judged
by itself, on what it reads: a whole model that rounds its activations amplifies harmless
differences as well.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from normtweak_core.export.trace import relative_change
from normtweak_core.ternary.inference import TernaryInference

# Change of one token's outputs, as a fraction of the size of all. On 13 models (docs/log.md,
# 2026-11-28): float16 up to 0.017, bfloat16 up to 0.032; 1.16 and more where scales overflow.
FAR = 0.1


@torch.inference_mode()
def linear_problem(
    name: str,
    linear: TernaryInference,
    x: Float[Tensor, "*batch in"],
    dtype: torch.dtype,
    spare: int = 0,
) -> str | None:
    """Return what goes wrong with a linear in a float type; None where nothing does.

    Args:
        name: Of the linear.
        linear: Codes, scale, gain and bias.
        x: What it reads, in float32.
        dtype: The float type.
        spare: How much larger than here the product of its scales may get; 0: only its outputs
            count.
    """
    limit = torch.finfo(dtype).max
    product = float(linear.weight_scale * linear.quantized(x)[1].max())
    reach = f"the two scales of {name} multiply to {product:.3g}"
    if spare and product * spare > limit:
        return f"{reach}, {'beyond' if product > limit else 'too near to'} {limit:g}"
    wanted, found = linear(x).flatten(0, -2), linear(x.to(dtype)).float().flatten(0, -2)
    worst = relative_change(wanted, found)[1]
    if worst <= FAR:
        return None
    if product > limit:
        return f"{reach}, beyond {limit:g}"
    return f"outputs of {name} move by {100 * worst:.0f} % of their size"
