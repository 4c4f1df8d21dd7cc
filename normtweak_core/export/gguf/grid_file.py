"""The GGUF file of an export on a grid: the same codes and scales, for llama.cpp."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gguf
import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedConfig

from normtweak_core.export.exported import ExportedWeights
from normtweak_core.export.gguf.containers import (
    CONTAINERS,
    Container,
    container_of,
    held_by,
    kinds_of,
)
from normtweak_core.export.gguf.families import FAMILIES, Family, family_obstacle
from normtweak_core.export.gguf.file import GgufFile, Planned, Stored
from normtweak_core.export.gguf.grid_checks import grid_error
from normtweak_core.export.gguf.packing import NotHeld, pack
from normtweak_core.export.gguf.settings import add_settings, rope_factors
from normtweak_core.model.skeleton import load_config
from normtweak_core.quantization.weight import QuantizedWeight


def write_grid_gguf(
    folder: Path,
    weights: ExportedWeights,
    entries: Mapping[str, Any],
    source: Path,
    *,
    inexact: bool = False,
) -> dict[str, object]:
    """Return the ``consumers`` of a compressed-tensors export, after writing its GGUF file.

    Args:
        folder: The export, whose payload is there.
        weights: Its weights.
        entries: What the manifest says of them.
        source: Folder of the float model.
        inexact: Whether the file may hold other weights, the nearest ones.

    Raises:
        InputError: The file cannot hold the model.
    """
    config = load_config(source)
    obstacle = family_obstacle(config.to_dict())
    if obstacle is not None:
        raise grid_error(obstacle)
    contents = _Contents(weights, entries, config, FAMILIES[config.model_type], inexact)
    kinds = Counter(contents.kinds.values())
    file = GgufFile(
        folder, contents.family.architecture, max(kinds, key=kinds.__getitem__), config.vocab_size
    )
    add_settings(file.writer, config)
    record = replace(file.write(contents.planned, contents.stored()), error=contents.error)
    loader = {"file": ".", "class": "AutoModelForCausalLM", "needs": ["compressed-tensors"]}
    return {"transformers": loader, "llama.cpp": asdict(record)}


class _Contents:
    """The tensors of the file, by the names that llama.cpp has for them."""

    def __init__(
        self,
        weights: ExportedWeights,
        entries: Mapping[str, Any],
        config: PreTrainedConfig,
        family: Family,
        inexact: bool,
    ):
        self._weights, self._config, self.family = weights, config, family
        self._inexact = inexact
        self.error: dict[str, Any] | None = None  # known once all is stored
        self._names = gguf.get_tensor_name_map(
            _ARCHITECTURES[family.architecture], config.num_hidden_layers
        )
        self._factors = rope_factors(config)
        self._quantized = {name for name, entry in entries.items() if entry["quantized"]}
        turned = self._quantized if weights.transposed else set()  # Conv1D: linears there
        shapes = {
            name: tuple(entry["shape"][::-1] if name in turned else entry["shape"])
            for name, entry in entries.items()
        }
        self.kinds = {name: self._kind(name, shapes[name]) for name in self._quantized}
        self._ours = list(shapes)
        self.planned = [
            Planned(self._name(name), self._kind_of(name, shape), shape)
            for name, shape in shapes.items()
        ]
        if self._factors is not None:
            self.planned.append(Planned("rope_freqs.weight", "F32", tuple(self._factors.shape)))

    def _name(self, name: str) -> str:
        found = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise grid_error(f"every tensor must have a place there, and {name} has none")
        return found

    def _kind(self, name: str, shape: tuple[int, ...]) -> str:
        scheme = self._weights.scheme.of_linear(name.removesuffix(".weight"))
        grid = scheme.bits, scheme.group_size, scheme.symmetric
        kinds = kinds_of(*grid, inexact=self._inexact)
        if not kinds:
            raise grid_error(f"it has no type for {scheme}")
        return container_of(kinds, shape[-1]).name

    def _kind_of(self, name: str, shape: tuple[int, ...]) -> str:
        """Return the type of a tensor; what is no matrix llama.cpp computes with in float32."""
        if name in self._quantized:
            return self.kinds[name]
        return "F32" if len(shape) < 2 else _FLOATS[self._weights.dtype]

    def stored(self) -> Iterator[Stored]:
        """Yield the tensors in order.

        Raises:
            InputError: A type does not hold a linear to the bit.
        """
        for name in self._ours:
            yield self._linear(name) if name in self._quantized else self._float(name)
        if self._factors is not None:
            yield Stored(self._factors.numpy(), self._factors)

    def _linear(self, name: str) -> Stored:
        layer, module = self._weights.linear(name.removesuffix(".weight")), name.split(".")[-2]
        rows = self._rows(module, len(layer.codes))
        if rows is not None:
            moved = {key: getattr(layer, key)[rows] for key in ("codes", "scales", "zeros")}
            layer = replace(layer, **moved)
        values, container = layer.dequantize(), CONTAINERS[self.kinds[name]]
        if container.name == "F32":
            return Stored(values.numpy(), values)
        is_held = container.name in held_by(layer.bits, layer.group_size, layer.symmetric)
        try:
            if is_held:
                return Stored(pack(layer, container), values)
        except NotHeld as why:
            if not self._inexact:
                raise grid_error(f"{why} of {name}", nearest_helps=True) from why
        return self._nearest(name, layer, values, container, is_held)

    def _nearest(
        self,
        name: str,
        layer: QuantizedWeight,
        values: Tensor,
        container: Container,
        is_held: bool,
    ) -> Stored:
        """Return what comes nearest to a linear that its type does not hold, and note how far.

        Where the type would hold the grid but for its scales, those alone are rounded.
        """
        kind = gguf.GGMLQuantizationType[container.name]
        if is_held:
            half = layer.scales.to(torch.float16).to(torch.float32)
            data = pack(replace(layer, scales=half), container)
        else:
            data = gguf.quantize(values.numpy(), kind)
        found = torch.from_numpy(gguf.dequantize(data, kind))
        largest = float((found - values).abs().max() / values.abs().max())
        mean = float((found - values).norm() / values.norm())
        if self.error is None or largest > self.error["largest"]:
            self.error = {"linear": name.removesuffix(".weight"), "largest": largest, "mean": mean}
        return Stored(data, found)

    def _float(self, name: str) -> Stored:
        tensor = self._weights.read(name)
        rows = self._rows(name.split(".")[-2], len(tensor))
        tensor = tensor if rows is None else tensor[rows]
        values = tensor.to(torch.float32)
        if tensor.dim() < 2:
            return Stored(values.numpy(), values)
        is_brain = tensor.dtype is torch.bfloat16
        return Stored((tensor.view(torch.int16) if is_brain else tensor).numpy(), values)

    def _rows(self, module: str, rows: int) -> Int64[Tensor, " rows"] | None:
        """Return which of our rows stands where in the file; None: each in its own place."""
        order, config = self.family.rows.get(module), self._config
        if order is None:
            return None
        heads = config.num_attention_heads
        if module == "k_proj":
            heads = config.num_key_value_heads
        if order == "pairs":
            return torch.arange(rows).view(heads, 2, -1).transpose(1, 2).flatten()
        return torch.arange(rows).view(heads, 3, -1).transpose(0, 1).flatten()


_FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_ARCHITECTURES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
