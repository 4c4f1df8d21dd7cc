"""The formats behind one set of functions: how a linear is packed, named and described."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normtweak_core.experts.names import mixes_experts
from normtweak_core.export.config import AnyExportConfig
from normtweak_core.export.formats import bitnet, compressed_tensors, gptq, grid_layer
from normtweak_core.export.formats.scheme import AnyScheme


@dataclass(frozen=True)
class Format:
    """How one on-disk format stores a quantized linear.

    ``Any`` stands for `QuantizedWeight` where readers find a dense weight, else `TernaryLinear`.
    """

    name: str
    suffixes: tuple[str, ...]  # names of a linear's tensors; the first belongs to no other module
    pack: Callable[[Any, torch.dtype], dict[str, Tensor]]
    unpack: Callable[[Mapping[str, Tensor], Any], Any]
    check: Callable[[str, Any, torch.dtype], None]  # module name, layer, export dtype
    # Of linears that do not all have one width.
    pack_mixed: Callable[[Any, torch.dtype], dict[str, Tensor]]
    # Of Conv1D layers, in blocks of so many inputs; None: readers leave those as they are.
    pack_conv1d: Callable[[Any, torch.dtype, int], dict[str, Tensor]] | None
    dense: bool  # False: readers keep the tensors as stored, and those include the bias


COMPRESSED_TENSORS = Format(
    "compressed-tensors",
    compressed_tensors.SUFFIXES,
    compressed_tensors.pack_linear,
    compressed_tensors.unpack_linear,
    grid_layer.check_layer,
    compressed_tensors.pack_mixed_linear,
    compressed_tensors.pack_conv1d,
    dense=True,
)
GPTQ = Format(
    "gptq",
    gptq.SUFFIXES,
    gptq.pack_linear,
    gptq.unpack_linear,
    grid_layer.check_layer,
    gptq.pack_linear,
    lambda weight, dtype, block: gptq.pack_linear(weight, dtype),  # readers put in their own
    dense=True,
)
BITNET = Format(
    "bitnet",
    bitnet.SUFFIXES,
    bitnet.pack_linear,
    bitnet.unpack_linear,
    bitnet.check_layer,
    bitnet.pack_linear,
    None,
    dense=False,
)
FORMATS = {form.name: form for form in (COMPRESSED_TENSORS, GPTQ, BITNET)}


def chosen_format(config: AnyExportConfig) -> Format:
    """Return the format of linears on a grid that a recipe asks for.

    ``auto`` is compressed-tensors, and so is ``gguf``, which has a file beside it.
    """
    aliases = {"auto": COMPRESSED_TENSORS, "gguf": COMPRESSED_TENSORS}
    return aliases.get(config.format) or FORMATS[config.format]


def describe(
    form: Format,
    scheme: AnyScheme,
    linears: frozenset[str],
    quantized: frozenset[str],
    block_prefix: str,
    unpacked: bool = False,
) -> dict[str, object]:
    """Return the ``quantization_config`` entry of config.json.

    Args:
        form: The format.
        scheme: What the quantized linears share, or their widths.
        linears: Full names of all linears of the model, and of what routes tokens to experts.
        quantized: Those of them that are quantized.
        block_prefix: What the names of the blocks' linears begin with, such as ``model.layers.``.
        unpacked: Whether readers have to unpack them while they load the model.

    """
    if form is COMPRESSED_TENSORS:
        return compressed_tensors.quantization_config(
            scheme, sorted(linears - quantized), unpacked or mixes_experts(quantized)
        )
    if form is BITNET:
        return bitnet.quantization_config(scheme, sorted(linears - quantized))
    in_blocks = {name for name in linears if name.startswith(block_prefix)}
    blocks = block_prefix.removesuffix(".")
    return gptq.quantization_config(scheme, sorted(quantized), in_blocks <= quantized, blocks)
