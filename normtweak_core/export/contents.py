"""The tensors of an export, made one at a time, and what a reader must find in their place."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.export.checks import conv1d_error
from normtweak_core.export.formats import Format
from normtweak_core.export.manifest import dtype_name, tensor_entry
from normtweak_core.export.scheme import Scheme
from normtweak_core.export.shards import ShardWriter
from normtweak_core.export.stored import largest_absolute
from normtweak_core.model.skeleton import LazyWeights, build_skeleton
from normtweak_core.model.structure import find_blocks
from normtweak_core.quantize.weight import QuantizedWeight


class Contents:
    """Everything a model folder stores, from three places: layers, replaced tensors, the source."""

    def __init__(
        self,
        source: Path,
        layers: Mapping[str, QuantizedWeight],
        replaced: Mapping[str, Tensor],
        form: Format,
        dtype: torch.dtype,
    ):
        """Look at names and shapes; no weight is read yet.

        Raises:
            InputError: The source lacks a tensor, or the layers are Conv1D.
            ValueError: Layers or replaced tensors are not this model's.

        """
        self.scheme: Scheme | None = None  # known once the first layer was seen
        self.entries: dict[str, object] = {}  # of the manifest, by the names of a loaded model
        self._layers, self._replaced, self._form, self._dtype = layers, replaced, form, dtype
        model = build_skeleton(source, torch.float32)
        self._source = LazyWeights(model, source, torch.float32, "cpu")
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._tied = dict(model.all_tied_weights_keys)
        self.linears = frozenset(
            name for name, module in model.named_modules() if isinstance(module, nn.Linear)
        )
        self.block_prefix = f"{find_blocks(model).prefix}."
        self._check_names(model)

    def names(self) -> list[str]:
        """Return what is to be stored, in the model's own order, without tied copies."""
        return [name for name in self._shapes if not self._is_copy(name)]

    def write(self, name: str, shards: ShardWriter) -> None:
        """Store one tensor of the model and note what a reader must find.

        Raises:
            InputError: It does not fit the float type.
            NonFiniteError: It is NaN or infinite.
            ValueError: The layer is not this model's, breaks the common scheme, or its scales are
                not numbers of the float type.

        """
        module = name.removesuffix(".weight")
        if module != name and module in self._layers:
            layer = self._layers[module]
            self._check_layer(module, layer)
            for suffix, tensor in self._form.pack(layer, self._dtype).items():
                shards.add(f"{module}.{suffix}", tensor)
            self.entries[name] = tensor_entry(layer.dequantize().to(self._dtype), quantized=True)
            return
        tensor = self._replaced[name] if name in self._replaced else self._read(name)
        stored = self._rounded(name, tensor)
        shards.add(name, stored)
        self.entries[name] = tensor_entry(stored)

    def _read(self, name: str) -> Tensor:
        return self._source.read([name])[name]

    def _rounded(self, name: str, tensor: Tensor) -> Tensor:
        if tuple(tensor.shape) != self._shapes[name]:
            raise ValueError(
                f"{name} must have shape {self._shapes[name]}; got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            return tensor
        if not tensor.isfinite().all():
            raise NonFiniteError(f"every weight must be finite; {name} is not")
        stored = tensor.detach().to("cpu", self._dtype)
        if not stored.isfinite().all():
            raise InputError(
                f"export.dtype: {dtype_name(self._dtype)} cannot hold {name}, which reaches "
                f"{largest_absolute(tensor):.6g}. Use bfloat16 or float32."
            )
        return stored

    def _is_copy(self, name: str) -> bool:
        """Say whether loading makes this tensor from another one, as transformers decides it."""
        if name in self._source.missing:
            return True
        origin = self._tied.get(name)
        if origin is None or origin in self._source.missing:
            return False
        return torch.equal(self._read(name), self._read(origin))

    def _check_layer(self, module: str, layer: QuantizedWeight) -> None:
        shape = self._shapes[f"{module}.weight"]
        if tuple(layer.codes.shape) != shape:
            raise ValueError(f"{module} must have {shape} codes; got {tuple(layer.codes.shape)}")
        self.scheme = self.scheme or Scheme.of(layer)
        if Scheme.of(layer) != self.scheme:
            raise ValueError(f"all layers must share {self.scheme}; {module} has another scheme")
        scales = layer.scales
        if not (scales.isfinite().all() and (scales > 0).all()):
            raise NonFiniteError(f"scales must be finite and positive; those of {module} are not")
        if not torch.equal(scales.to(self._dtype).to(torch.float32), scales):
            raise ValueError(
                f"scales must be numbers that {dtype_name(self._dtype)} holds; those of {module} "
                "are not. Round them with round_scale before quantizing."
            )
        if layer.symmetric and not (layer.zeros == 2 ** (layer.bits - 1)).all():
            raise ValueError(f"a symmetric layer's zeros must be 2**(bits-1); {module} differs")

    def _check_names(self, model: nn.Module) -> None:
        if not self._layers:
            raise ValueError("an export needs at least one quantized layer; got none")
        for name, module in model.named_modules():
            if isinstance(module, Conv1D) and name in self._layers:
                raise conv1d_error(name)
        for name in self._layers:
            if name not in self.linears:
                raise ValueError(f"{name} is not a linear of this model")
        for name in self._replaced:
            if name not in self._shapes or self._is_copy(name):
                raise ValueError(f"{name} is not a stored parameter of this model")
            if name.removesuffix(".weight") in self._layers:
                raise ValueError(f"{name} is both quantized and replaced")
