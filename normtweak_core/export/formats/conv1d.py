"""Which formats hold a model whose linears are Conv1D layers, as those of GPT-2; no torch.

Their weights are [in, out], transposed. Readers of gptq put a linear of their own in the place of a
Conv1D. Of compressed-tensors transformers unpacks whatever stands under the name of a weight, where
it dequantizes while loading, so that a transposed weight comes out in place; packed it keeps
`nn.Linear` alone. bitnet leaves a Conv1D as it is.
"""

from normtweak_core.errors import InputError
from normtweak_core.quantization.config import MixedBits, QuantizationConfig


def check_conv1d(quantization: QuantizationConfig, name: str) -> None:
    """Accept one width and float activations: what is dequantized by one scheme while loading.

    Args:
        quantization: Width and grid asked for.
        name: Of a Conv1D.

    Raises:
        InputError: No reader opens the model as it is asked for.
    """
    if isinstance(quantization.bits, MixedBits):
        raise InputError(
            "must be one width for a model of Conv1D layers (GPT-2), which transformers takes "
            "apart by one scheme while it loads them",
            key="quantization.bits",
            found=f"found {quantization.in_words}, and {name} is a Conv1D",
            remedy="set one width",
        )
    if quantization.activation_bits is not None:
        raise InputError(
            "must be null for a model of Conv1D layers (GPT-2), of which no reader rounds "
            "activations",
            key="quantization.activation_bits",
            found=f"it is {quantization.activation_bits}, and {name} is a Conv1D",
            remedy="remove it",
        )


def ternary_conv1d_error(name: str) -> InputError:
    """Return the error for ternary training of a model of Conv1D layers."""
    return InputError(
        f"ternary training needs linears of type nn.Linear; {name} is a Conv1D (GPT-2), which the "
        "readers of bitnet leave out. Quantize the model (normtweak quantize), or choose another "
        "one, such as a GPT-NeoX of the same size."
    )
