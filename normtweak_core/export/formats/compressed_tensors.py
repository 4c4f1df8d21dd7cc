"""One quantized linear as compressed-tensors stores it (format ``pack-quantized``).

=================  ====================  ====================================================
tensor             type and shape        content
=================  ====================  ====================================================
weight_packed      int32 [out, words]    codes, a bit stream along the input (see packing.py)
weight_scale       export [out, groups]  scales
weight_zero_point  int32 [words, groups] zeros, a bit stream along the output (asymmetric)
weight_shape       int64 [2]             out, in
=================  ====================  ====================================================

Where widths differ, zeros are int8 [out, groups], less the middle code: transformers 5.23 takes
packed ones apart by one scheme for the whole model, and knows groups with plain ones as blocks of
one row.

Since compressed-tensors 0.20 a 3-bit code may straddle words; older releases read 3 bits wrongly.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from normtweak_core.export.formats.packing import pack_rows, unpack_rows
from normtweak_core.export.formats.scheme import MixedScheme, Scheme
from normtweak_core.quantization.weight import QuantizedWeight

SUFFIXES = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
ROW = 1 << 20  # columns: a block of so many holds any row
# What a linear reads, where it is rounded: see `normtweak_core.activations.rounding`.
INPUTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
MINIMUM_VERSION = {2: "0.15", 3: "0.20", 4: "0.15", 8: "0.15"}


def pack_linear(weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of one linear by the last part of their names."""
    tensors = {
        "weight_packed": pack_rows(weight.codes, weight.bits),
        "weight_scale": weight.scales.to(dtype),
        "weight_shape": torch.tensor(weight.codes.shape, dtype=torch.int64),
    }
    if not weight.symmetric:
        zeros = pack_rows(weight.zeros.T.contiguous(), weight.bits)
        tensors["weight_zero_point"] = zeros.T.contiguous()
    return tensors


def pack_mixed_linear(weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a linear among others of other widths."""
    tensors = pack_linear(weight, dtype)
    if not weight.symmetric:
        middle = 2 ** (weight.bits - 1)
        tensors["weight_zero_point"] = (weight.zeros.to(torch.int16) - middle).to(torch.int8)
    return tensors


def unpack_linear(tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedWeight:
    """Return the linear that ``pack_linear`` or ``pack_mixed_linear`` stored."""
    rows, columns = tensors["weight_shape"].tolist()
    scales = tensors["weight_scale"].to(torch.float32)
    if scheme.symmetric:
        zeros = torch.full(scales.shape, 2 ** (scheme.bits - 1), dtype=torch.uint8)
    elif tensors["weight_zero_point"].dtype == torch.int8:
        zeros = tensors["weight_zero_point"].to(torch.int16) + 2 ** (scheme.bits - 1)
        zeros = zeros.to(torch.uint8)
    else:
        packed = tensors["weight_zero_point"].T.contiguous()
        zeros = unpack_rows(packed, scheme.bits, rows).T.contiguous()
    codes = unpack_rows(tensors["weight_packed"], scheme.bits, columns)
    grid = (scheme.bits, scheme.group_size, scheme.symmetric)
    return QuantizedWeight(codes, scales, zeros, *grid, scheme.activation_bits)


def quantization_config(
    scheme: Scheme | MixedScheme, float_linears: Sequence[str], experts: bool = False
) -> dict[str, object]:
    """Return the ``quantization_config`` entry of config.json.

    Args:
        scheme: Width and grid of every quantized linear, or the widths of all.
        float_linears: Full names of the linears that stay float, the output head among them.
        experts: Whether quantized linears are those of experts.

    """
    if isinstance(scheme, MixedScheme):
        groups = [
            (names, _weights(scheme.of_linear(names[0]), mixed=True))
            for names in scheme.by_width.values()
        ]
    else:
        groups = [(["Linear"], _weights(scheme))]
    rounded = isinstance(scheme, Scheme) and scheme.activation_bits is not None
    inputs = INPUTS if rounded else None
    config: dict[str, object] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": sorted(float_linears),
        "config_groups": {
            f"group_{number}": {
                "targets": targets,
                "weights": weights,
                "input_activations": inputs,
                "output_activations": None,
                # Where inputs are rounded, readers would take a group without it for int-quantized.
                "format": "pack-quantized",
            }
            for number, (targets, weights) in enumerate(groups)
        },
    }
    if experts or not (scheme.symmetric or isinstance(scheme, MixedScheme)):
        # transformers 5.23 with compressed-tensors 0.20 expects unpacked zero points, and has no
        # place for the packed matrices of experts, unless it dequantizes while loading.
        config["dequantize"] = True
    return config


def _weights(scheme: Scheme, mixed: bool = False) -> dict[str, object]:
    """Return what config.json says of the weights of some linears."""
    strategy: dict[str, object] = {
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
    }
    if mixed and not scheme.symmetric:
        strategy = {"strategy": "block", "block_structure": [1, scheme.group_size or ROW]}
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        **strategy,
        "dynamic": False,
    }
