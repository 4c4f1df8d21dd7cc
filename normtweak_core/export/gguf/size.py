"""Whether the GGUF file of a grid is as large as widths and shapes say."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import gguf

from normtweak_core.export.formats.scheme import TernaryScheme, recorded_scheme
from normtweak_core.export.gguf.containers import CONTAINERS, container_of, kinds_of
from normtweak_core.export.gguf.error import error_in_words


@dataclass(frozen=True)
class GgufSize:
    """What a file holds beside what it should hold."""

    size_bytes: int  # of the file
    linears: Mapping[str, int]  # how many linears each type holds
    bits_per_weight: float  # of the quantized linears
    error: Mapping[str, Any] | None  # see `GgufRecord`
    differing: list[str] = field(default_factory=list)  # sentences

    def in_words(self) -> str:
        """Return types, bits and size in a line."""
        kinds = ", ".join(f"{count} linears {kind}" for kind, count in sorted(self.linears.items()))
        size = f"{kinds}; {self.bits_per_weight:.4g} bits per weight, {self.size_bytes:,} bytes"
        return size if self.error is None else f"{size}; {error_in_words(self.error)}"


def gguf_size(folder: Path, manifest: Mapping[str, Any]) -> GgufSize | None:
    """Return what the GGUF file of an export on a grid holds; None where there is none.

    Args:
        folder: Of the export.
        manifest: Its manifest.
    """
    scheme = recorded_scheme(manifest["export"])
    entry = manifest.get("consumers", {}).get("llama.cpp", {})
    if isinstance(scheme, TernaryScheme) or not entry.get("file"):
        return None
    block = manifest["export"].get("block")  # of Conv1D, whose weights are [in, out] elsewhere
    wanted, predicted, weights = Counter[str](), Counter[str](), 0
    for name, one in manifest["tensors"].items():
        if one["quantized"]:
            own = scheme.of_linear(name.removesuffix(".weight"))
            *rows, columns = one["shape"] if block is None else one["shape"][::-1]
            grid = own.bits, own.group_size, own.symmetric
            container = container_of(kinds_of(*grid, inexact=True), columns)
            wanted[container.name] += 1
            predicted[container.name] += prod(rows) * container.row_bytes(columns)
            weights += prod(one["shape"])
    path, found, differing = folder / entry["file"], Counter[str](), []
    for tensor in gguf.GGUFReader(path).tensors:
        kind, shape = tensor.tensor_type.name, [int(n) for n in reversed(tensor.shape)]
        size = prod(shape[:-1]) * CONTAINERS[kind].row_bytes(shape[-1])
        if tensor.n_bytes != size:
            differing.append(f"{tensor.name} takes {tensor.n_bytes} instead of {size}")
        found[kind] += int(tensor.n_bytes)
    differing += [
        f"the {kind} linears take {found[kind]} instead of {size}"
        for kind, size in predicted.items()
        if not kind.startswith("F") and found[kind] != size
    ]
    bits = 8 * predicted.total() / weights
    return GgufSize(path.stat().st_size, dict(wanted), bits, entry["error"], differing)
