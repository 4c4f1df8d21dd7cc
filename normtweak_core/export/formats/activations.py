"""Refuses rounded activations, before any work, where no reader would round them; no torch."""

from collections.abc import Collection

from normtweak_core.errors import InputError
from normtweak_core.experts.names import mixes_experts
from normtweak_core.export.config import AnyExportConfig
from normtweak_core.quantization.config import QuantizationConfig


def check_activations(
    export: AnyExportConfig, quantization: QuantizationConfig, linears: Collection[str]
) -> None:
    """Accept float activations, and rounded ones of a dense model in compressed-tensors.

    Raises:
        InputError: The format holds none, or transformers dequantizes the model while loading.
    """
    if quantization.activation_bits is None:
        return
    if mixes_experts(linears):
        raise InputError(
            "must be null for a mixture of experts",
            key="quantization.activation_bits",
            found=f"it is {quantization.activation_bits}, and transformers unpacks experts while "
            "it loads them, and then rounds no activations",
            remedy="remove it",
        )
    if export.format == "gptq":
        raise InputError(
            "export.format: gptq holds no rounded activations; quantization.activation_bits is "
            f"{quantization.activation_bits}. Use compressed-tensors, or set it to null."
        )
