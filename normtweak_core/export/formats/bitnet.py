"""One ternary linear as transformers' BitNet integration stores it (``bitlinear``).

===============  ====================  ============================================================
tensor           type and shape        content
===============  ====================  ============================================================
weight_scale     export [1]            1 / mean|W|: readers divide by it
weight           uint8 [out/4, in]     byte row r holds the rows r, r + out/4, r + 2 out/4 and
                                       r + 3 out/4, lowest two bits first, each as code + 1
rms_norm.weight  export [in]           gain of the RMSNorm before the linear, where there is one
bias             export [out]          where there is one
===============  ====================  ============================================================

Source: transformers 5.23 ``integrations/bitnet.py``. Its other class, ``autobitlinear``, multiplies
the bias by the scale too, so it is not used.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int8, UInt8
from torch import Tensor
from transformers.quantizers.quantizers_utils import should_convert_module

from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.export.formats.checks import ROWS_PER_BYTE, LinearShape, rows_error
from normtweak_core.export.formats.scheme import TernaryScheme
from normtweak_core.ternary.weight import TernaryLinear

SUFFIXES = ("weight_scale", "weight", "rms_norm.weight", "bias")
BITS = 2  # of one code in a byte


def pack_codes(codes: Int8[Tensor, "out in"]) -> UInt8[Tensor, "bytes in"]:
    """Return ternary codes with four rows in a byte; ``out`` must be a multiple of four."""
    quarters = (codes + 1).to(torch.uint8).reshape(ROWS_PER_BYTE, -1, codes.shape[1])
    packed = torch.zeros_like(quarters[0])
    for i in range(ROWS_PER_BYTE):
        packed |= quarters[i] << (BITS * i)
    return packed


def unpack_codes(packed: UInt8[Tensor, "bytes in"]) -> Int8[Tensor, "out in"]:
    """Return the codes that ``pack_codes`` packed."""
    quarters = [(packed >> (BITS * i)) & (2**BITS - 1) for i in range(ROWS_PER_BYTE)]
    return torch.cat(quarters).to(torch.int8) - 1


def pack_linear(layer: TernaryLinear, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of one linear by the last part of their names."""
    tensors = {
        "weight_scale": layer.weight_scale.reshape(1).to(dtype),
        "weight": pack_codes(layer.codes),
    }
    if layer.gain is not None:
        tensors["rms_norm.weight"] = layer.gain.to(dtype)
    if layer.bias is not None:
        tensors["bias"] = layer.bias.to(dtype)
    return tensors


def unpack_linear(tensors: Mapping[str, Tensor], scheme: TernaryScheme) -> TernaryLinear:
    """Return the linear that ``pack_linear`` stored.

    Raises:
        InputError: The scheme has an RMSNorm and the tensors have no gain, or the other way round.
    """
    gain, bias = tensors.get("rms_norm.weight"), tensors.get("bias")
    if (gain is not None) != scheme.rms_norm:
        raise InputError(
            f"a bitnet export with {scheme} must hold rms_norm.weight just where that says so; it "
            f"{'lacks it' if gain is None else 'holds one'}. Export again."
        )
    return TernaryLinear(
        codes=unpack_codes(tensors["weight"]),
        weight_scale=tensors["weight_scale"].to(torch.float32).reshape(()),
        gain=None if gain is None else gain.to(torch.float32),
        bias=None if bias is None else bias.to(torch.float32),
    )


def check_layer(module: str, layer: TernaryLinear, dtype: torch.dtype) -> None:
    """Accept a linear that the format holds.

    Raises:
        InputError: Its rows do not fill whole bytes, or its scale, gain or bias does not fit the
            float type.
        NonFiniteError: Its scale, gain or bias is NaN or infinite, or its scale not positive.
        ValueError: A code is not ternary, or the scale is not a number of the float type.
    """
    shape = LinearShape(*layer.codes.shape)
    if shape.out_features % ROWS_PER_BYTE:
        raise rows_error(module, shape)
    if not ((layer.codes >= -1) & (layer.codes <= 1)).all():
        raise ValueError(f"codes must be -1, 0 or 1; those of {module} are not")
    name = str(dtype).removeprefix("torch.")
    for what, tensor in vars(layer).items():
        if what == "codes" or tensor is None:
            continue
        if not tensor.isfinite().all():
            raise NonFiniteError(f"every {what} must be finite; that of {module} is not")
        if not tensor.to(dtype).isfinite().all():
            raise InputError(
                f"export.dtype: {name} cannot hold the {what} of {module}, which reaches "
                f"{float(tensor.abs().max()):.6g}. Use bfloat16 or float32."
            )
    scale = layer.weight_scale
    if not scale > 0:
        raise NonFiniteError(f"every weight_scale must be positive; that of {module} is {scale}")
    if scale.to(dtype).to(torch.float32) != scale:
        raise ValueError(
            f"weight_scale must be a number that {name} holds; that of {module} is not. "
            "Make the layer with ternary_linear and the export's dtype."
        )


def quantization_config(scheme: TernaryScheme, float_linears: Sequence[str]) -> dict[str, object]:
    """Return the ``quantization_config`` entry of config.json.

    Args:
        scheme: Whether there is an RMSNorm before every ternary linear.
        float_linears: Full names of the linears that stay float, the output head among them.
    """
    return {
        "quant_method": "bitnet",
        "linear_class": "bitlinear",
        "quantization_mode": "offline",
        "use_rms_norm": scheme.rms_norm,
        "rms_norm_eps": scheme.rms_norm_eps,
        "modules_to_not_convert": sorted(float_linears),
    }


def check_conversion(
    linears: frozenset[str], ternary: frozenset[str], kept_in_float32: Sequence[str]
) -> None:
    """Accept a model whose ternary linears, and no others, transformers makes ``BitLinear``.

    It converts every nn.Linear but those whose name begins or ends like an entry of a list.

    Args:
        linears: Full names of all linears of the model.
        ternary: Those of them that are ternary.
        kept_in_float32: What transformers adds to the list for this kind of model.

    Raises:
        InputError: The names of two linears cannot be told apart by that rule.
    """
    kept = [*sorted(linears - ternary), *kept_in_float32]
    for name in sorted(linears):
        if should_convert_module(name, kept) != (name in ternary):
            raise InputError(
                "transformers must convert exactly the ternary linears of a bitnet export; by its "
                f"rule of names it would leave {name} float, whose name begins or ends like one "
                "that stays float. Make that one ternary too, or choose another model."
            )
