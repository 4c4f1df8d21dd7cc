"""The two formats behind one set of functions: how a linear is packed, named and described."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normtweak_core.export import compressed_tensors, gptq_format
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.scheme import Scheme
from normtweak_core.quantize.weight import QuantizedWeight


@dataclass(frozen=True)
class Format:
    """How one on-disk format stores a quantized linear."""

    name: str
    suffixes: tuple[str, ...]  # last parts of the names of a linear's tensors
    pack: Callable[[QuantizedWeight, torch.dtype], dict[str, Tensor]]
    unpack: Callable[[Mapping[str, Tensor], Scheme], QuantizedWeight]


COMPRESSED_TENSORS = Format(
    "compressed-tensors",
    compressed_tensors.SUFFIXES,
    compressed_tensors.pack_linear,
    compressed_tensors.unpack_linear,
)
GPTQ = Format("gptq", gptq_format.SUFFIXES, gptq_format.pack_linear, gptq_format.unpack_linear)
FORMATS = {form.name: form for form in (COMPRESSED_TENSORS, GPTQ)}


def chosen_format(config: ExportConfig) -> Format:
    """Return the format a recipe asks for; ``auto`` is compressed-tensors."""
    return COMPRESSED_TENSORS if config.format == "auto" else FORMATS[config.format]


def describe(
    form: Format,
    scheme: Scheme,
    linears: frozenset[str],
    quantized: frozenset[str],
    block_prefix: str,
) -> dict[str, object]:
    """Return the ``quantization_config`` entry of config.json.

    Args:
        form: The format.
        scheme: Width and grid of every quantized linear.
        linears: Full names of all linears of the model.
        quantized: Those of them that are quantized.
        block_prefix: What the names of the blocks' linears begin with, such as ``model.layers.``.

    """
    if form is COMPRESSED_TENSORS:
        return compressed_tensors.quantization_config(scheme, sorted(linears - quantized))
    in_blocks = {name for name in linears if name.startswith(block_prefix)}
    return gptq_format.quantization_config(scheme, sorted(quantized), in_blocks <= quantized)
