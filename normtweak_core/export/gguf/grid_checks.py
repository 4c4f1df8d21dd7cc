"""What a GGUF file of a grid cannot hold, seen from a recipe, config.json and shapes; no torch."""

from collections.abc import Mapping
from typing import Any

from normtweak_core.errors import InputError
from normtweak_core.export.config import AnyExportConfig
from normtweak_core.export.formats.checks import LinearShape
from normtweak_core.export.gguf.containers import PLAIN, SMALL, container_of, kinds_of
from normtweak_core.export.gguf.families import family_obstacle
from normtweak_core.quantization.config import MixedBits, QuantizationConfig


def check_grid_exportable(
    export: AnyExportConfig,
    quantization: QuantizationConfig,
    config: Mapping[str, Any],
    linears: Mapping[str, LinearShape],
) -> None:
    """Accept a recipe whose result a GGUF file holds to the bit, or that asks for no such file.

    Args:
        export: Format and float type asked for.
        quantization: Width and grid asked for.
        config: config.json of the float model.
        linears: The linears to be quantized, by name.

    Raises:
        InputError: llama.cpp does not run the model, or has no type for the grid.
    """
    if export.format != "gguf":
        return
    family = family_obstacle(config)
    obstacle = family or grid_obstacle(export, quantization, linears)
    if obstacle is None:
        return
    nearest = export.model_copy(update={"inexact": "allow"})
    helps = family is None and grid_obstacle(nearest, quantization, linears) is None
    raise grid_error(obstacle, helps)


def grid_obstacle(
    export: AnyExportConfig, quantization: QuantizationConfig, linears: Mapping[str, LinearShape]
) -> str | None:
    """Return why no types hold a grid, as a clause; None where some do."""
    if isinstance(quantization.bits, MixedBits):
        return "all linears must have one width, and quantization.bits is a budget"
    if quantization.activation_bits is not None:
        return (
            "activations must be float, which llama.cpp rounds in its own way, and "
            "quantization.activation_bits is 8"
        )
    inexact = export.allows_inexact
    if export.dtype == "float32" and not inexact:
        return "scales must be numbers of half precision, and export.dtype is float32"
    bits, group = quantization.bits, quantization.group_size
    kinds = kinds_of(bits, group, quantization.symmetric, inexact)
    if not kinds and bits == 8 and not quantization.symmetric:
        return "8-bit grids must be symmetric, and quantization.symmetric is false"
    if not kinds:
        return f"groups must be whole blocks of {SMALL}, and quantization.group_size is {group}"
    widths = {shape.in_features for shape in linears.values()}
    if all(container_of(kinds, width).name == PLAIN for width in widths):
        return f"rows must be whole blocks of {SMALL}, and none is ({min(widths)} wide)"
    return None


def grid_error(obstacle: str, nearest_helps: bool = False) -> InputError:
    """Return the error for a model or a grid that a GGUF file does not hold.

    Args:
        obstacle: Why not, as a clause.
        nearest_helps: Whether it could hold what is nearest.
    """
    needed = "export.format: gguf needs a model and a grid that llama.cpp holds to the bit"
    if not nearest_helps:
        return InputError(f"{needed}; {obstacle}. Change that, or use compressed-tensors.")
    return InputError(
        f"{needed}; {obstacle}. Change that, use compressed-tensors, or let it hold what is "
        "nearest with export.inexact: allow."
    )


def held_in_words(quantization: QuantizationConfig, linears: Mapping[str, LinearShape]) -> str:
    """Return the types that hold the linears, and what a weight takes there."""
    sizes = predicted_bytes(quantization, linears)
    weights = sum(shape.out_features * shape.in_features for shape in linears.values())
    bits = 8 * sum(sizes.values()) / weights
    return f"as {' and '.join(sorted(sizes))}: {bits:.4g} bits per weight"


def predicted_bytes(
    quantization: QuantizationConfig, linears: Mapping[str, LinearShape]
) -> dict[str, int]:
    """Return the bytes of the linears in the file by the type that holds them."""
    grid = quantization.bits, quantization.group_size, quantization.symmetric
    kinds = kinds_of(*grid, inexact=True)  # what is not allowed was refused before
    sizes: dict[str, int] = {}
    for shape in linears.values():
        container = container_of(kinds, shape.in_features)
        size = shape.out_features * container.row_bytes(shape.in_features)
        sizes[container.name] = sizes.get(container.name, 0) + size
    return sizes
