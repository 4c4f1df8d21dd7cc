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

A Conv1D, as in GPT-2, has its weight transposed, and so have all its tensors: the codes are a bit
stream along the output, scales and plain zeros [blocks, out], a block being the inputs of a group
in one column. Transformers dequantizes it while loading, by its name; packed it keeps `nn.Linear`
alone. Where scales hold for whole rows, they are repeated for each block that divides all widths.

Since compressed-tensors 0.20 a 3-bit code may straddle words; older releases read 3 bits wrongly.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from normtweak_core.export.formats.packing import pack_rows, unpack_rows
from normtweak_core.export.formats.scheme import MixedScheme, Scheme
from normtweak_core.quantization.weight import QuantizedWeight

SUFFIXES = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
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
        tensors["weight_zero_point"] = _plain(weight.zeros, weight.bits)
    return tensors


def pack_conv1d(weight: QuantizedWeight, dtype: torch.dtype, block: int) -> dict[str, Tensor]:
    """Return the tensors of a Conv1D by the last part of their names."""
    codes = weight.codes.T.contiguous()
    repeated = weight.codes.shape[1] // block // weight.scales.shape[1]
    scales, zeros = (
        grid.repeat_interleave(repeated, dim=1).T.contiguous()
        for grid in (weight.scales, weight.zeros)
    )
    tensors = {
        "weight_packed": pack_rows(codes, weight.bits),
        "weight_scale": scales.to(dtype),
        "weight_shape": torch.tensor(codes.shape, dtype=torch.int64),
    }
    if not weight.symmetric:
        tensors["weight_zero_point"] = _plain(zeros, weight.bits)
    return tensors


def unpack_linear(tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedWeight:
    """Return the linear that ``pack_linear`` or one of its like stored."""
    if scheme.block is not None:
        return _unpack_conv1d(tensors, scheme)
    rows, columns = tensors["weight_shape"].tolist()
    scales = tensors["weight_scale"].to(torch.float32)
    if scheme.symmetric:
        zeros = torch.full(scales.shape, 2 ** (scheme.bits - 1), dtype=torch.uint8)
    elif tensors["weight_zero_point"].dtype == torch.int8:
        zeros = _from_plain(tensors["weight_zero_point"], scheme.bits)
    else:
        packed = tensors["weight_zero_point"].T.contiguous()
        zeros = unpack_rows(packed, scheme.bits, rows).T.contiguous()
    codes = unpack_rows(tensors["weight_packed"], scheme.bits, columns)
    grid = (scheme.bits, scheme.group_size, scheme.symmetric)
    return QuantizedWeight(codes, scales, zeros, *grid, scheme.activation_bits)


def _unpack_conv1d(tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedWeight:
    columns, rows = tensors["weight_shape"].tolist()
    scales = tensors["weight_scale"].T.to(torch.float32)
    if scheme.symmetric:
        zeros = torch.full(scales.shape, 2 ** (scheme.bits - 1), dtype=torch.uint8)
    else:
        zeros = _from_plain(tensors["weight_zero_point"].T, scheme.bits)
    groups = columns // (scheme.group_size or columns)
    once = slice(None, None, scales.shape[1] // groups)
    codes = unpack_rows(tensors["weight_packed"], scheme.bits, rows).T.contiguous()
    grid = (scheme.bits, scheme.group_size, scheme.symmetric)
    return QuantizedWeight(codes, scales[:, once].contiguous(), zeros[:, once].contiguous(), *grid)


def _plain(zeros: Tensor, bits: int) -> Tensor:
    return (zeros.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def _from_plain(zeros: Tensor, bits: int) -> Tensor:
    return (zeros.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)


def quantization_config(
    scheme: Scheme | MixedScheme, float_linears: Sequence[str], unpacked: bool = False
) -> dict[str, object]:
    """Return the ``quantization_config`` entry of config.json.

    Args:
        scheme: Width and grid of every quantized linear, or the widths of all.
        float_linears: Full names of the linears that stay float, the output head among them.
        unpacked: Whether readers have to unpack them while they load the model: those of experts,
            and of models that fill in weights by name.

    """
    if isinstance(scheme, MixedScheme):
        groups = [
            (names, _weights(scheme.of_linear(names[0]), mixed=True, columns=columns))
            for names, columns in scheme.groups
        ]
    else:
        kind = "Linear" if scheme.block is None else "Conv1D"
        groups = [([kind], _weights(scheme))]
    rounded = isinstance(scheme, Scheme) and scheme.activation_bits is not None
    transposed = isinstance(scheme, Scheme) and scheme.block is not None
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
    if unpacked or transposed or not (scheme.symmetric or isinstance(scheme, MixedScheme)):
        # transformers 5.23 with compressed-tensors 0.20 expects unpacked zero points, and has no
        # place for packed matrices of experts or of a Conv1D, unless it dequantizes while loading;
        # nor do models that fill in weights by name find any.
        config["dequantize"] = True
    return config


def _weights(scheme: Scheme, mixed: bool = False, columns: int | None = None) -> dict[str, object]:
    """Return what config.json says of the weights of some linears."""
    strategy: dict[str, object] = {
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
    }
    if mixed and not scheme.symmetric:
        # As wide as the rows, not wider: readers fill rows up to whole blocks.
        strategy = {"strategy": "block", "block_structure": [1, columns]}
    if scheme.block is not None:
        strategy = {"strategy": "block", "block_structure": [scheme.block, 1]}
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        **strategy,
        "dynamic": False,
    }
