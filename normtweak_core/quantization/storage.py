"""A finished block on disk: codes, scales, zeros and norm masters in one file, drift in another."""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from normtweak_core.activations.rounding import round_inputs
from normtweak_core.model.structure import find_linears, set_linear_weight
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.drift import Drift
from normtweak_core.quantization.streams import Streams
from normtweak_core.quantization.weight import QuantizedWeight, with_rounded_inputs
from normtweak_core.tweak.tweak import round_norms

METADATA = {"format": "pt"}  # more keys would be written in random order


def save_block(path: Path, layers: dict[str, QuantizedWeight], norms: dict[str, Tensor]) -> None:
    """Write the codes of each layer and the float32 masters of each tweaked norm parameter."""
    tensors = {f"norm.{name}": value.contiguous() for name, value in norms.items()}
    for name, weight in layers.items():
        tensors[f"codes.{name}"] = weight.codes.cpu().contiguous()
        tensors[f"scales.{name}"] = weight.scales.cpu().contiguous()
        tensors[f"zeros.{name}"] = weight.zeros.cpu().contiguous()
        if weight.g_idx is not None:
            tensors[f"g_idx.{name}"] = weight.g_idx.cpu().contiguous()
    save_file(dict(sorted(tensors.items())), path, metadata=METADATA)


def load_block(
    path: Path, config: QuantizationConfig, widths: Mapping[str, int] | None = None
) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]]:
    """Return what `save_block` wrote; width and groups come from the config it was made with.

    Where that leaves widths open, they are given by the names of linears.
    """
    tensors = load_file(path)
    names = [key.removeprefix("codes.") for key in tensors if key.startswith("codes.")]
    layers = {
        name: QuantizedWeight(
            tensors[f"codes.{name}"],
            tensors[f"scales.{name}"],
            tensors[f"zeros.{name}"],
            widths[name] if widths else config.bits,
            config.group_size,
            config.symmetric,
            config.activation_bits,
            g_idx=tensors.get(f"g_idx.{name}"),
        )
        for name in names
    }
    norms = {
        key.removeprefix("norm."): value
        for key, value in tensors.items()
        if key.startswith("norm.")
    }
    return layers, norms


def save_drift(path: Path, stages: Mapping[str, Sequence[Drift]]) -> None:
    """Write the drift of some stages, each a list over blocks, as ``STAGE.FIELD``.

    Every tensor is [blocks, channels] in float64; the fields are those of `Drift.tensors`.
    """
    tensors = {
        f"{stage}.{field}": torch.stack([block.tensors()[field] for block in blocks])
        for stage, blocks in stages.items()
        for field in blocks[0].tensors()
    }
    save_file(dict(sorted(tensors.items())), path, metadata=METADATA)


def quantized_copy(
    block: nn.Module,
    layers: dict[str, QuantizedWeight],
    norms: dict[str, Tensor],
    export_dtype: torch.dtype,
) -> nn.Module:
    """Return the float block with dequantized weights and kept norms, as the stream saw it."""
    quantized = copy.deepcopy(block)
    linears = find_linears(quantized)
    for name, weight in layers.items():
        set_linear_weight(linears[name], weight.dequantize().to(next(block.parameters()).device))
    round_inputs(quantized, with_rounded_inputs(layers))
    with torch.no_grad():
        for name, master in norms.items():
            quantized.get_parameter(name).copy_(master.to(export_dtype))
    round_norms(quantized, export_dtype)
    return quantized


def stream_hash(stream: Tensor) -> str:
    """Return the SHA-256 of a stream's raw values."""
    raw = stream.cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(memoryview(raw.numpy()).cast("B")).hexdigest()


def stream_hashes(streams: Streams) -> tuple[str, str]:
    """Return the hashes of the float and of the quantized stream."""
    return stream_hash(streams.x_f), stream_hash(streams.x_q)


def save_streams(path: Path, streams: Streams) -> None:
    """Write both streams of one boundary."""
    save_file(
        {"x_f": streams.x_f.contiguous(), "x_q": streams.x_q.contiguous()}, path, metadata=METADATA
    )


def load_streams(path: Path) -> Streams:
    """Return what `save_streams` wrote."""
    tensors = load_file(path)
    return Streams(tensors["x_f"], tensors["x_q"])
