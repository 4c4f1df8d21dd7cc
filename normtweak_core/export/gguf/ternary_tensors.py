"""A ternary model as the tensors of llama.cpp's ``bitnet`` architecture.

In the model, a block norm (gain g1) is followed by a norm before each linear (gain g2), and
``RMS2(RMS1(x)) = g2 g1 x / rms(g1 x)``. Where g1 is one number, up to its sign, that is a single
norm with the gain ``g2 sign(g1)``, and where the linears that read the same tensor share g2, it is
the architecture's. The norms before the output projections are its sub norms. What remains is the
eps, which two norms in a row apply differently: one in a million of a stream near one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import gguf
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from normtweak_core.export.exported import ExportedWeights
from normtweak_core.export.gguf.file import GgufObstacle
from normtweak_core.export.gguf.ternary_checks import TYPE
from normtweak_core.ternary.weight import TernaryLinear

# A scale is stored in half precision; beyond this it is not the same number, but a subnormal.
SCALE_PRECISION = 2.0**-10
ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
}
MLP = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
# Block norm and the linears that read what it makes; then the linears with a norm of their own.
READERS = {"input_layernorm": ATTENTION, "post_attention_layernorm": MLP}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
OUTPUTS = {"self_attn.o_proj": "attn_output", "mlp.down_proj": "ffn_down"}
SUB_NORMS = {"self_attn.o_proj": "attn_sub_norm", "mlp.down_proj": "ffn_sub_norm"}
LINEARS = ATTENTION | OUTPUTS | MLP


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file."""

    name: str
    kind: str
    values: Float[Tensor, "..."]  # float32


def gguf_tensors(weights: ExportedWeights, num_blocks: int) -> Iterator[GgufTensor]:
    """Yield the tensors in the order of the file; one linear is in memory at a time.

    Args:
        weights: A bitnet export of a Llama.
        num_blocks: How many blocks the model has.

    Raises:
        GgufObstacle: Gains or scales are such that the architecture does not hold them.
    """
    f32 = "F32"
    half = weights.read("model.embed_tokens.weight").dtype == torch.float16
    embedding = "F16" if half else f32
    yield GgufTensor("token_embd.weight", embedding, _read(weights, "model.embed_tokens.weight"))
    for i in range(num_blocks):
        block, out = f"model.layers.{i}", f"blk.{i}"
        for norm, linears in READERS.items():
            names = [f"{block}.{name}" for name in linears]
            gain = _folded(weights, f"{block}.{norm}", names)
            yield GgufTensor(f"{out}.{NORMS[norm]}.weight", f32, gain)
        for name, sub_norm in SUB_NORMS.items():
            gain = _gain(weights.linear(f"{block}.{name}"))
            yield GgufTensor(f"{out}.{sub_norm}.weight", f32, gain)
        for name, short in LINEARS.items():
            values = _dequantized(f"{block}.{name}", weights.linear(f"{block}.{name}"))
            yield GgufTensor(f"{out}.{short}.weight", TYPE, values)
    yield GgufTensor("output_norm.weight", f32, _read(weights, "model.norm.weight"))


def check_linears(weights: ExportedWeights, num_blocks: int) -> None:
    """Accept an export that has all linears, norms and nothing more than the architecture.

    Raises:
        GgufObstacle: It does not hold them.
    """
    if "lm_head.weight" in weights:
        raise GgufObstacle("the output head must be the embedding, and it is stored beside it")
    if not weights.scheme.rms_norm:
        raise GgufObstacle("every ternary linear must read what a norm with a gain makes")
    wanted = {f"model.layers.{i}.{name}" for i in range(num_blocks) for name in LINEARS}
    missing = sorted(wanted - set(weights.linears))
    if missing:
        raise GgufObstacle(f"every linear of the blocks must be ternary, and {missing[0]} is not")


def _read(weights: ExportedWeights, name: str) -> Tensor:
    return weights.read(name).to(torch.float32)


def _gain(layer: TernaryLinear) -> Float[Tensor, " in"]:
    assert layer.gain is not None  # looked at by `check_linears`
    return layer.gain


def _folded(weights: ExportedWeights, norm: str, linears: list[str]) -> Float[Tensor, " in"]:
    """Return the gain of the one norm that a block norm and those after it are."""
    first = _read(weights, f"{norm}.weight")
    size = first.abs()
    if not (size == size[0]).all() or not size[0] > 0:
        raise GgufObstacle(
            f"the gain of a block norm must be one number, and that of {norm} goes from "
            f"{float(size.min()):.4g} to {float(size.max()):.4g}"
        )
    gains = {name: _gain(weights.linear(name)) for name in linears}
    shared = gains[linears[0]]
    for name, gain in gains.items():
        if not torch.equal(gain, shared):
            raise GgufObstacle(
                f"linears that read the same tensor must share their gains, and {name} has others "
                f"than {linears[0]}"
            )
    return shared * first.sign()


def _dequantized(name: str, layer: TernaryLinear) -> Float[Tensor, "out in"]:
    """Return the weight whose scale is the half-precision number that the file holds."""
    scale = 1.0 / layer.weight_scale
    stored = scale.to(torch.float16).to(torch.float32)
    if not (stored - scale).abs() <= SCALE_PRECISION * scale:
        raise GgufObstacle(
            f"a scale must fit half precision, and that of {name} is {float(scale):.4g}"
        )
    return layer.codes.to(torch.float32) * stored


def packed(tensor: GgufTensor) -> np.ndarray:
    """Return the bytes or numbers that the file holds for a tensor."""
    return gguf.quantize(tensor.values.numpy(), gguf.GGMLQuantizationType[tensor.kind])
