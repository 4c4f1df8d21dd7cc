"""Refuses, before any work, what the chosen format cannot hold or its reader cannot open; no torch.

What readers can open was found by running them: compressed-tensors 0.20 opens every width and group
size, but for `_check_zero_points`; gptqmodel 7.7 through transformers 5.23 and optimum 2.3 on a CPU
has the limits below.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from normtweak_core.errors import InputError
from normtweak_core.experts.names import mixes_experts, router_names
from normtweak_core.export.config import AnyExportConfig
from normtweak_core.export.formats.activations import check_activations
from normtweak_core.export.formats.conv1d import check_conv1d, ternary_conv1d_error
from normtweak_core.model.checkpoint import stored_tensors
from normtweak_core.model.layout import block_list
from normtweak_core.quantization.config import MixedBits, QuantizationConfig
from normtweak_core.widths.budget import check_budget

GPTQ_READER = ".venv-reader-gptq"  # made by `make reader-gptq`
GPTQ_READER_DONE = f"{GPTQ_READER}/.complete"  # what it makes last; the interpreter comes first
GPTQ_GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
# At 4 bits the reader's CPU kernels take only these, and stop with an error at any other.
GPTQ_GROUP_SIZES_4_BIT = (32, 64, 128, 256)
WORD = 32  # bits
ROWS_PER_BYTE = 4  # of a ternary matrix in bitnet
UNCALLED = ".dt_proj"  # of Mamba and what is built of it


@dataclass(frozen=True)
class LinearShape:
    """Widths of one linear of a block."""

    out_features: int
    in_features: int
    transposed: bool = False  # a Conv1D, as in GPT-2


def linear_shapes(folder: Path) -> dict[str, LinearShape]:
    """Return the linears of the blocks by name, from the headers of the weight files alone.

    What routes tokens to experts is none of them: it stays float. Nor is Mamba's ``dt_proj``, whose
    weight is read without a call, whatever its width.

    A weight whose bias has the length of its second dimension is a Conv1D's; where one is, square
    weights, which cannot tell, are taken for the same.

    Raises:
        InputError: A weight file is absent or damaged.

    """
    stored = stored_tensors(folder)
    routers = router_names({name: tensor.shape for name, tensor in stored.items()})
    inside = f"{block_list(stored)[0]}."
    weights = {
        linear: tensor.shape
        for name, tensor in stored.items()
        if name.startswith(inside)
        and name.endswith(".weight")
        and len(tensor.shape) == 2
        and (linear := name.removesuffix(".weight")) not in routers
        and not linear.endswith(UNCALLED)
    }
    biases = {name: stored.get(f"{name}.bias") for name in weights}
    transposed = any(
        bias is not None and bias.shape == weights[name][1:] != weights[name][:1]
        for name, bias in biases.items()
    )
    if transposed:
        return {name: LinearShape(b, a, transposed=True) for name, (a, b) in weights.items()}
    return {name: LinearShape(a, b) for name, (a, b) in weights.items()}


def check_exportable(
    export: AnyExportConfig,
    quantization: QuantizationConfig,
    linears: Mapping[str, LinearShape],
    *,
    reader_available: bool,
) -> None:
    """Accept a recipe whose result can be written and opened again.

    Args:
        export: Format and float type asked for.
        quantization: Width and grid asked for.
        linears: The linears to be quantized, by name.
        reader_available: Whether the environment that reads gptq is complete; other formats need
            none.

    Raises:
        InputError: The format cannot hold the model at this width and group size, or nothing here
            could read it.

    """
    for name, shape in linears.items():
        if shape.transposed:
            check_conv1d(quantization, name)
        group_size = quantization.group_size
        if group_size is not None and shape.in_features % group_size:
            raise InputError(
                f"quantization.group_size must divide every input width; {group_size} does not "
                f"divide {shape.in_features} of {name}. Choose a divisor, or null for whole rows."
            )
    check_activations(export, quantization, linears)
    if isinstance(quantization.bits, MixedBits):
        _check_mixed(export, quantization, linears)
        return
    if mixes_experts(linears):
        _check_experts(export, quantization)
    if export.format == "gptq":
        _check_gptq(export, quantization, linears, reader_available)
    else:
        _check_zero_points(quantization, linears)


def check_ternary_exportable(export: AnyExportConfig, linears: Mapping[str, LinearShape]) -> None:
    """Accept a ternary recipe whose result can be written and opened again.

    Args:
        export: Format and float type asked for.
        linears: The linears that are to be ternary, by name.

    Raises:
        InputError: The format holds no ternary model, or not one of these shapes.

    """
    check_ternary_format(export)
    refuse_experts(linears, "ternary training")
    for name, shape in linears.items():
        if shape.transposed:
            raise ternary_conv1d_error(name)
        if shape.out_features % ROWS_PER_BYTE:
            raise rows_error(name, shape)


def check_ternary_format(export: AnyExportConfig) -> None:
    """Accept a format of ternary models: bitnet, by any of its names.

    Raises:
        InputError: It is another.

    """
    if export.format not in ("auto", "bitnet", "gguf"):
        raise InputError(
            f"export.format of a ternary model must be bitnet; it is {export.format}, which holds "
            "no rounded activations. Use auto or bitnet."
        )


def refuse_experts(linears: Collection[str], what: str) -> None:
    """Accept a model without experts.

    Args:
        linears: Names of its linears.
        what: That cannot be done with them.

    Raises:
        InputError: It mixes experts.
    """
    if mixes_experts(linears):
        raise InputError(
            f"{what} needs a model without experts; this one is a mixture of experts, which can "
            "be quantized (normtweak quantize). Choose a dense model."
        )


def rows_error(name: str, shape: LinearShape) -> InputError:
    """Return the error for a ternary linear whose rows do not fill whole bytes."""
    return InputError(
        f"export.format: bitnet packs {ROWS_PER_BYTE} rows into a byte, so that every output width "
        f"must be a multiple of {ROWS_PER_BYTE}; {name} has {shape.out_features} outputs (and "
        f"{shape.in_features} inputs). Leave it float, or choose another model."
    )


def _check_mixed(
    export: AnyExportConfig, quantization: QuantizationConfig, linears: Mapping[str, LinearShape]
) -> None:
    """Refuse what transformers cannot open of several widths, and a budget that cannot be kept.

    Of a gptq file it reads one width, whatever ``dynamic`` says (5.23 with optimum 2.3); of experts
    it stacks all by one scheme.
    """
    if export.format == "gptq":
        raise InputError(
            "must be one width for export.format: gptq, of which transformers reads no other",
            key="quantization.bits",
            found=f"found {quantization.in_words}",
            remedy="use compressed-tensors, or one width",
        )
    if mixes_experts(linears):
        raise InputError(
            "must be one width for a mixture of experts, which transformers takes apart by one "
            "scheme for all blocks",
            key="quantization.bits",
            found=f"found {quantization.in_words}",
            remedy="set one width, or choose a dense model",
        )
    shapes = [(shape.out_features, shape.in_features) for shape in linears.values()]
    dtype = "float32" if export.dtype == "float32" else "float16"
    check_budget(quantization, shapes, "compressed-tensors", dtype)


def _check_zero_points(
    quantization: QuantizationConfig, linears: Mapping[str, LinearShape]
) -> None:
    """Refuse zero points of which each group has one word only, at 4 bits.

    compressed-tensors turns them around and looks at the bytes of the last dimension, which is no
    longer contiguous then ("self.stride(-1) must be 1 to view Int as Byte"). Those of Conv1D layers
    are plain bytes.
    """
    if quantization.bits != 4 or quantization.symmetric or quantization.group_size is None:
        return
    rows = WORD // quantization.bits
    for name, shape in linears.items():
        several = shape.in_features > quantization.group_size
        if shape.out_features <= rows and several and not shape.transposed:
            raise InputError(
                "export.format: compressed-tensors cannot be opened where a linear has several "
                f"groups and at most {rows} outputs, at 4 bits with zero points; {name} has "
                f"{shape.out_features} outputs (and {shape.in_features} inputs). Set "
                "quantization.symmetric to true, quantization.group_size to null, or "
                "quantization.bits to 3 or 8."
            )


def _check_experts(export: AnyExportConfig, quantization: QuantizationConfig) -> None:
    """Refuse what transformers cannot open of a mixture of experts.

    It makes the stacked weights while loading: from compressed-tensors without zero points
    (transformers#47430). Of a gptq file it leaves the experts random.
    """
    if export.format == "gptq":
        raise InputError(
            "export.format: gptq holds no mixture of experts that transformers opens: it would "
            "leave the experts random. Use compressed-tensors, with quantization.symmetric true."
        )
    if not quantization.symmetric:
        raise InputError(
            "must be true for a mixture of experts",
            key="quantization.symmetric",
            found="it is false, and transformers reads no zero points of experts",
            remedy="set it to true",
        )


def _check_gptq(
    export: AnyExportConfig,
    quantization: QuantizationConfig,
    linears: Mapping[str, LinearShape],
    reader_available: bool,
) -> None:
    bits, group_size = quantization.bits, quantization.group_size
    if export.dtype not in ("auto", "float16"):
        raise gptq_dtype_error(export.dtype)
    if bits == 4 and group_size is None:
        raise InputError(
            "export.format: gptq at 4 bits needs groups; quantization.group_size is null, which "
            "its reader cannot run on a CPU. Set group_size, or use compressed-tensors."
        )
    allowed = GPTQ_GROUP_SIZES_4_BIT if bits == 4 else GPTQ_GROUP_SIZES
    if group_size is not None and group_size not in allowed:
        raise InputError(
            f"export.format: gptq at {bits} bits needs quantization.group_size to be one of "
            f"{', '.join(map(str, allowed))}; it is {group_size}. Choose one of them, or use "
            "compressed-tensors."
        )
    for name, shape in linears.items():
        # A run of 32 codes is what a 3-bit reader unpacks at a time; 16 rows what a 4-bit one does.
        multiple = {2: 16, 3: 32, 4: 8, 8: 4}[bits]
        rows = 16 if bits == 4 else multiple
        for width, what, unit in (
            (shape.in_features, "input", multiple),
            (shape.out_features, "output", rows),
        ):
            if width % unit:
                raise InputError(
                    f"export.format: gptq at {bits} bits needs widths that fill whole {WORD}-bit "
                    f"words, multiples of {unit}; the {what} of {name} is {width}. Use "
                    "compressed-tensors."
                )
    if not reader_available:
        raise InputError(
            f"export.format: gptq is verified by a reader in {GPTQ_READER}, which is absent or not "
            "complete. Run `make reader-gptq`, or use compressed-tensors."
        )


class FloatTypeError(InputError):
    """A float type does not hold a model, as readers compute it.

    Attributes:
        dtype: The float type.
        why: What goes wrong in it.
        holds: Float types in which the same was tried and holds.
    """

    def __init__(self, dtype: str, why: str, holds: list[str], form: str = "auto"):
        self.dtype, self.why, self.holds = dtype, why, holds
        which = f"{' or '.join(holds)}, {'which holds' if len(holds) == 1 else 'which hold'} it"
        if not holds:
            remedy = "no other float type was found to hold it: check the weights of the model"
        elif form == "gptq":
            remedy = f"gptq is read in float16 alone: set export.format to auto, with {which}"
        else:
            remedy = f"set it to {which}"
        super().__init__(
            "must hold the model as its readers compute it",
            key="export.dtype",
            found=f"{dtype} does not: {why}",
            remedy=remedy,
        )


def next_float_type(
    config: AnyExportConfig,
    refused: FloatTypeError,
    tried: Collection[str],
    allowed: Collection[str] = ("float16", "bfloat16", "float32"),
) -> str:
    """Return the float type in which a refused export is made again.

    Args:
        config: Format and float type asked for; only with auto another one is tried.
        refused: Why the last one does not hold the export, and which do.
        tried: Those that were refused before it.
        allowed: Those that may take its place.

    Raises:
        FloatTypeError: None is left, or another one than was asked for: the given one.
    """
    untried = [name for name in refused.holds if name not in tried and name in allowed]
    if config.dtype != "auto" or config.format == "gptq" or not untried:
        raise refused
    return untried[0]


def gptq_dtype_error(dtype: str) -> InputError:
    """Return the error for a float type in which gptq weights would not be exact."""
    return InputError(
        f"export.format: gptq needs export.dtype float16, in which its reader computes; "
        f"it is {dtype}. Use float16, or compressed-tensors."
    )
