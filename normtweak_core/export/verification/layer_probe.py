"""What every linear that rounds its input must make of a fixed one, compared one at a time.

A model that rounds its activations amplifies the smallest difference: one number that falls on the
other side of a rounding boundary changes everything after it. So each linear is given an input of
its own, far from every boundary, so that any faithful reader, on any machine, rounds to the same
numbers. Of a ternary linear, what is rounded, ``127 v / max|v|`` of the normalized ``v``, comes out
as whole numbers up to `MODERATE` and one 127 in each token. Of a linear on a grid it is whole
numbers and quarters, such that the quarters add up in one row: a reader that does not round at all
differs there.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from normtweak_core.activations.rounding import HALF_RANGE, rounded_tokens
from normtweak_core.export.exported import ExportedWeights
from normtweak_core.ternary.inference import TernaryInference
from normtweak_core.ternary.quantizers import INT8_MAX
from normtweak_core.ternary.weight import TernaryLinear

TOKENS = 2
MODERATE = 40  # as large a share of the 127 as in a real token
KEPT_OUTPUTS = 64  # evenly spaced, so that a wide linear stays a small file
# A gain below this share of the largest would need an input that dwarfs the others: its column
# is fed zero.
SMALLEST_GAIN = 1e-2
# Largest |difference| of one linear's output, as a fraction of its largest magnitude. Measured on
# random linears 64 to 1024 wide: float32 0, float16 up to 1.6e-3, bfloat16 up to 1.4e-2.
LAYER_TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}


def layer_probe(weights: ExportedWeights, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return ``input/NAME`` and ``output/NAME`` of every rounding linear of a written export.

    Inputs are in the export dtype, [tokens, in]; outputs in float32, [tokens, kept].
    """
    tensors = {}
    for name in weights.linears if weights.ternary else ():
        layer = weights.linear(name)
        x = probe_input(layer).to(dtype)
        with torch.inference_mode():
            y = TernaryInference(layer, weights.scheme.rms_norm_eps)(x.to(torch.float32))
        tensors[f"input/{name}"] = x
        tensors[f"output/{name}"] = y[:, :: output_step(y.shape[1])].contiguous()
    for name in weights.rounded:
        weight = weights.read(f"{name}.weight").to(torch.float32)
        x = grid_input(weight)
        tensors[f"input/{name}"] = x.to(dtype)
        bias = weights.read(f"{name}.bias").float() if f"{name}.bias" in weights else None
        outputs = linear(rounded_tokens(x[None])[0], weight, bias)
        tensors[f"output/{name}"] = outputs[:, :: output_step(len(weight))].contiguous()
    return tensors


def layer_problem(weights: ExportedWeights, dtype: torch.dtype) -> str | None:
    """Return which ternary linear a float type does not hold; None where it holds them all.

    Each is run on its own input, in float32 and as readers run it in the float type, whose product
    of two scales may leave its range.
    """
    tolerance = LAYER_TOLERANCE[str(dtype).removeprefix("torch.")]
    for name in weights.linears:
        layer = weights.linear(name)
        run = TernaryInference(layer, weights.scheme.rms_norm_eps)
        x = probe_input(layer).to(dtype)
        with torch.inference_mode():
            found, wanted = run(x).to(torch.float32), run(x.to(torch.float32))
        difference = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
        if not difference <= tolerance:  # also true for NaN
            scale = float(layer.weight_scale)
            return (
                f"{name}, whose weight scale is {scale:.4g}, moves by {100 * difference:.0f} % of "
                "its largest output"
            )
    return None


def output_step(out_features: int) -> int:
    """Return how far the kept output columns lie apart."""
    return -(-out_features // KEPT_OUTPUTS)


def grid_input(weight: Float[Tensor, "out in"]) -> Float[Tensor, "tokens in"]:
    """Return an input whose rounding meets no boundary, and shows.

    In steps of the token's scale: small whole numbers, quarters beside them that are rounded away
    and would add up in a row that is kept, and 127.5 in one column; all of it exact in halves.
    """
    width = weight.shape[1]
    column, token = torch.arange(width), torch.arange(TOKENS)[:, None]
    whole = ((column * 37 + token * 53 + 11) % 9 - 4).to(torch.float32)
    steps = whole + torch.where(weight[:1] < 0, -0.25, 0.25)
    steps[torch.arange(TOKENS), torch.arange(TOKENS) * width // TOKENS] = HALF_RANGE
    return steps / 32


def probe_input(layer: TernaryLinear) -> Float[Tensor, "tokens in"]:
    """Return an input with a mean square of one whose rounding meets no boundary."""
    width = layer.codes.shape[1]
    gain = torch.ones(width) if layer.gain is None else layer.gain
    column, token = torch.arange(width), torch.arange(TOKENS)[:, None]
    # 37 and 53 are prime to the 81 values, so that all occur, in another order for each token.
    wanted = ((column * 37 + token * 53 + 11) % (2 * MODERATE + 1) - MODERATE).to(torch.float32)
    used = gain.abs() >= SMALLEST_GAIN * gain.abs().max()
    peaks = column[used][[int(used.sum()) * t // TOKENS for t in range(TOKENS)]]
    wanted[torch.arange(TOKENS), peaks] = INT8_MAX
    x = torch.where(used & (gain != 0), wanted / gain, 0.0)
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True).clamp(min=1e-30))
