"""One quantized linear as GPTQ checkpoints store it (``gptq``, or ``gptq_v2`` where asymmetric).

========  ==========================  =============================================================
tensor    type and shape              content
========  ==========================  =============================================================
qweight   int32 [in*bits/32, out]     codes, a bit stream along the input (see packing.py)
qzeros    int32 [groups, out*bits/32] zeros, a bit stream along the output; v1 stores zero - 1
scales    export [groups, out]        scales
g_idx     int32 [in]                  group of each input column
========  ==========================  =============================================================

Readers of version 1 add one to whole packed words, so that a zero of 0 carries into its neighbour:
asymmetric grids, whose zeros may be 0, are always written as version 2.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from normtweak_core.export.formats.packing import pack_rows, unpack_rows
from normtweak_core.export.formats.scheme import Scheme
from normtweak_core.quantization.weight import QuantizedWeight

# Where readers look for blocks by themselves (optimum 2.3).
KNOWN_BLOCKS = ("transformer.h", "model.decoder.layers", "gpt_neox.layers", "model.layers")
SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


def pack_linear(weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of one linear by the last part of their names."""
    columns, g_idx = weight.codes.shape[1], weight.g_idx
    if g_idx is None:
        g_idx = torch.arange(columns, dtype=torch.int32) // (weight.group_size or columns)
    zeros = weight.zeros - 1 if weight.symmetric else weight.zeros
    return {
        "qweight": pack_rows(weight.codes, weight.bits).T.contiguous(),
        "qzeros": pack_rows(zeros.T.contiguous(), weight.bits),
        "scales": weight.scales.T.contiguous().to(dtype),
        "g_idx": g_idx,
    }


def unpack_linear(tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedWeight:
    """Return the linear that ``pack_linear`` stored."""
    scales = tensors["scales"].T.to(torch.float32).contiguous()
    columns = tensors["g_idx"].shape[0]
    zeros = unpack_rows(tensors["qzeros"], scheme.bits, scales.shape[0]).T.contiguous()
    if scheme.symmetric:
        zeros = zeros + 1
    codes = unpack_rows(tensors["qweight"].T.contiguous(), scheme.bits, columns)
    g_idx = tensors["g_idx"].contiguous() if scheme.act_order else None
    kind = scheme.bits, scheme.group_size, scheme.symmetric
    return QuantizedWeight(codes, scales, zeros, *kind, g_idx=g_idx)


def quantization_config(
    scheme: Scheme, quantized: Sequence[str], all_in_blocks: bool, blocks: str
) -> dict[str, object]:
    """Return the ``quantization_config`` entry of config.json.

    Args:
        scheme: Width and grid of every quantized linear.
        quantized: Full names of the quantized linears.
        all_in_blocks: Whether they are all the linears that the blocks have; readers convert
            every one of those unless told which.
        blocks: Name of the list of blocks.

    """
    config: dict[str, object] = {
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": scheme.group_size or -1,
        "desc_act": scheme.act_order,
        "sym": scheme.symmetric,
        "checkpoint_format": "gptq" if scheme.symmetric else "gptq_v2",
    }
    if not all_in_blocks:
        config["modules_in_block_to_quantize"] = [list(quantized)]
    if blocks not in KNOWN_BLOCKS:
        config["block_name_to_quantize"] = blocks
    return config
