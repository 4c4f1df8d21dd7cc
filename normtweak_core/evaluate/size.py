"""What the quantized weights of a checkpoint take on disk, in bits per weight."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from normtweak_core.errors import InputError
from normtweak_core.export.foreign.layouts import read_packing
from normtweak_core.export.foreign.linears import packed_linears
from normtweak_core.model.architecture import read_config

DTYPE_BITS = {"I64": 64, "I32": 32, "F32": 32, "I16": 16, "F16": 16, "BF16": 16, "I8": 8, "U8": 8}
# Tensors beside `<linear>.` that together hold one weight matrix, by format.
COMPRESSED_TENSORS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
INT_QUANTIZED = ("weight", "weight_scale", "weight_zero_point")
GPTQ = ("qweight", "qzeros", "scales", "g_idx")
BITNET = ("weight", "weight_scale", "rms_norm.weight")
CODES_PER_BYTE = 4  # of bitnet


@dataclass(frozen=True)
class QuantizedStorage:
    """How many bits the quantized linears of a checkpoint really take."""

    num_linears: int
    num_weights: int
    # Codes, scales, zeros, shapes, indices, gains of norms that came with the quantization. Biases
    # are not counted.
    stored_bits: int

    @property
    def bits_per_weight(self) -> float | None:
        """Stored bits per weight; None for a checkpoint without quantized linears."""
        return self.stored_bits / self.num_weights if self.num_weights else None


def quantized_storage(folder: Path) -> QuantizedStorage:
    """Return what quantized linears of a checkpoint take: compressed-tensors, GPTQ, AWQ, BitNet.

    Raises:
        InputError: The folder holds no safetensors file.
    """
    shapes: dict[str, tuple[list[int], str]] = {}
    dense_shapes: dict[str, list[int]] = {}
    for file in _weight_files(folder):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():
                part = tensors.get_slice(name)
                shapes[name] = (part.get_shape(), part.get_dtype())
                if name.endswith(".weight_shape"):
                    dense_shapes[name] = tensors.get_tensor(name).tolist()

    bitnet = _is_bitnet(folder)
    packed = functools.cache(lambda: _packed_weights(folder))  # of all linears, where one asks
    linears = weights = bits = 0
    for name, (shape, dtype) in shapes.items():
        linear, _, last = name.rpartition(".")
        if last == "weight_packed":
            parts, numel = COMPRESSED_TENSORS, math.prod(dense_shapes[f"{linear}.weight_shape"])
        elif last == "qweight":
            # g_idx has one entry per input column; qweight packs the inputs, not the outputs.
            g_idx = shapes.get(f"{linear}.g_idx")
            parts, numel = GPTQ, g_idx[0][0] * shape[1] if g_idx else packed()[linear]
        elif bitnet and last == "weight" and f"{linear}.weight_scale" in shapes:
            parts, numel = BITNET, math.prod(shape) * CODES_PER_BYTE
        elif last == "weight" and dtype in ("I8", "U8") and f"{linear}.weight_scale" in shapes:
            parts, numel = INT_QUANTIZED, math.prod(shape)
        else:
            continue
        stored = [shapes[f"{linear}.{part}"] for part in parts if f"{linear}.{part}" in shapes]
        linears += 1
        weights += numel
        bits += sum(math.prod(shape) * DTYPE_BITS[dtype] for shape, dtype in stored)
    return QuantizedStorage(num_linears=linears, num_weights=weights, stored_bits=bits)


def _packed_weights(folder: Path) -> dict[str, int]:
    """Return how many weights each linear has whose words alone do not tell it, as in awq."""
    found = packed_linears(folder, read_packing(folder))
    return {name: linear.rows * linear.columns for name, linear in found.items()}


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(
            f"A checkpoint folder must hold *.safetensors files, found none in {folder}. "
            "Give the folder of an export or of a downloaded model."
        )
    return files


def _is_bitnet(folder: Path) -> bool:
    """Say whether bytes of ``weight`` are four codes each, which their type does not tell."""
    config = read_config(folder) if (folder / "config.json").is_file() else {}
    return (config.get("quantization_config") or {}).get("quant_method") == "bitnet"
