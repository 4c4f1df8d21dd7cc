"""The tensors of an export, made one at a time, and what a reader must find in their place."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from normtweak_core.errors import NonFiniteError
from normtweak_core.experts.naming import Naming
from normtweak_core.experts.stacked import find_routers
from normtweak_core.export.formats.bitnet import check_conversion
from normtweak_core.export.formats.checks import FloatTypeError
from normtweak_core.export.formats.conv1d import ternary_conv1d_error
from normtweak_core.export.formats.filled_in import filled_in
from normtweak_core.export.formats.scheme import AnyScheme, MixedScheme, Scheme, TernaryScheme
from normtweak_core.export.formats.table import BITNET, COMPRESSED_TENSORS, Format
from normtweak_core.export.manifest import (
    dtype_name,
    quantized_entry,
    raw_bytes,
    stack_entry,
    tensor_entry,
    tensor_sha256,
)
from normtweak_core.export.shards import ShardWriter
from normtweak_core.model.skeleton import LazyWeights, build_skeleton
from normtweak_core.model.structure import find_blocks, find_linears, linear_weight
from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.stored import largest_absolute
from normtweak_core.ternary.weight import TernaryLinear


class Contents:
    """Everything a model folder stores, from three places: layers, replaced tensors, the source."""

    def __init__(
        self,
        source: Path,
        layers: Mapping[str, QuantizedWeight] | Mapping[str, TernaryLinear],
        replaced: Mapping[str, Tensor],
        form: Format,
        dtype: torch.dtype,
        scheme_of: Callable[[Any], Scheme | TernaryScheme],
        widths: Mapping[str, int] | None = None,
    ):
        """Look at names and shapes; no weight is read yet.

        Args:
            source: Folder of the float model.
            layers: Quantized linears by full module name.
            replaced: Float tensors that take the source's place, by full parameter name.
            form: The format.
            dtype: The export dtype.
            scheme_of: What returns the scheme of one layer; all must have the same.
            widths: Of the layers, where they differ.

        Raises:
            InputError: The source lacks a tensor, ternary layers are Conv1D, or their names are
                such that a reader would convert others.
            ValueError: Layers or replaced tensors are not this model's.

        """
        self.scheme: AnyScheme | None = None  # known once the first layer was seen
        self._widths = widths if widths and len(set(widths.values())) > 1 else {}
        self.entries: dict[str, object] = {}  # of the manifest, by the names of a loaded model
        self.form, self.dtype, self.quantized = form, dtype, frozenset(layers)
        self._layers, self._replaced, self._scheme_of = layers, replaced, scheme_of
        model = build_skeleton(source, torch.float32)
        self._source = LazyWeights(model, source, torch.float32, "cpu")
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._tied = dict(model.all_tied_weights_keys)
        self.naming = Naming(model, self._source)
        linears = find_linears(model)
        self._linear_shapes = {
            name: tuple(linear_weight(linear).shape) for name, linear in linears.items()
        }
        self._conv1d = {name for name, linear in linears.items() if isinstance(linear, Conv1D)}
        self.linears = frozenset([*linears, *find_routers(model)])
        self.block_prefix = f"{find_blocks(model).prefix}."
        self._check_names(model)
        # Whether readers have to unpack all linears while they load them; ends the skeleton's use.
        self.unpacked = form is COMPRESSED_TENSORS and filled_in(model, self._layers) is not None

    def names(self) -> list[str]:
        """Return what is to be stored, in the model's own order, without tied copies.

        A quantized linear has one name here, its weight's, whatever is stored for it.
        """
        return [
            name
            for name in self._shapes
            if not (self._is_copy(name) or (self._is_layers(name) and not _is_weight(name)))
        ]

    def write(self, name: str, shards: ShardWriter) -> None:
        """Store one tensor of the model and note what a reader must find.

        Raises:
            InputError: It does not fit the float type.
            NonFiniteError: It is NaN or infinite.
            ValueError: The layer is not this model's, breaks the common scheme, or its scales are
                not numbers of the float type.

        """
        if name in self.naming.stacks:
            self._write_stack(name, shards)
            return
        if self._is_layers(name):
            self._write_layer(name.removesuffix(".weight"), shards)
            return
        tensor = self._replaced[name] if name in self._replaced else self._read(name)
        stored = self._rounded(name, tensor)
        shards.add(self.naming.tensor(name), stored)
        self._note(name, tensor_entry(stored))

    def _note(self, name: str, entry: dict[str, object]) -> None:
        """Note what a reader must find, and where it is stored if under another name."""
        stored = self.naming.tensor(name)
        self.entries[name] = entry if stored == name else entry | {"stored": stored}

    def _write_layer(self, module: str, shards: ShardWriter) -> None:
        layer, packed = self._packed(module, shards)
        if self.form.dense:
            weight, scales = layer.dequantize().to(self.dtype), layer.scales.to(self.dtype)
            if module in self._conv1d:  # as the model and as the file has them
                weight, scales = weight.T.contiguous(), packed.get("weight_scale", scales)
            self._note(f"{module}.weight", quantized_entry(weight, scales))
            return
        for suffix, tensor in packed.items():
            self.entries[f"{module}.{suffix}"] = tensor_entry(tensor, quantized=suffix == "weight")

    def _packed(self, module: str, shards: ShardWriter) -> tuple[Any, dict[str, Tensor]]:
        """Store a quantized linear; return it, and what is stored."""
        layer = self._layers[module]
        self._check_layer(module, layer)
        block, stored = getattr(self.scheme, "block", None), self.naming.linear(module)
        if block is not None and self.form.pack_conv1d is not None:
            packed = self.form.pack_conv1d(layer, self.dtype, block)
        else:
            pack = self.form.pack_mixed if self._widths else self.form.pack
            packed = pack(layer, self.dtype)
        for suffix, tensor in packed.items():
            shards.add(f"{stored}.{suffix}", tensor)
        return layer, packed

    def _write_stack(self, name: str, shards: ShardWriter) -> None:
        """Store the linears of a stacked weight one by one; a reader finds all in one tensor."""
        digest, linears = hashlib.sha256(), []
        for module in self.naming.stacks[name]:
            layer, _ = self._packed(module, shards)
            digest.update(raw_bytes(layer.dequantize().to(self.dtype)))
            scales = tensor_sha256(layer.scales.to(self.dtype))
            linears.append({"stored": self.naming.linear(module), "scales_sha256": scales})
        entry = stack_entry(digest.hexdigest(), self._shapes[name], self.dtype, linears)
        self.entries[name] = entry

    def _is_layers(self, name: str) -> bool:
        """Say whether a parameter of the float model comes from one of the layers."""
        module, _, last = name.rpartition(".")
        return module in self._layers and (last == "weight" or not self.form.dense)

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
        stored = tensor.detach().to("cpu", self.dtype)
        if not stored.isfinite().all():
            limit, name_of_type = torch.finfo(self.dtype).max, dtype_name(self.dtype)
            why = f"{name} reaches {largest_absolute(tensor):.6g}, beyond {limit:g}"
            raise FloatTypeError(name_of_type, why, ["bfloat16", "float32"], self.form.name)
        return stored

    def _is_copy(self, name: str) -> bool:
        """Say whether loading makes this tensor from another one, as transformers decides it."""
        if name in self._source.missing:
            return True
        origin = self._tied.get(name)
        if origin is None or origin in self._source.missing:
            return False
        return torch.equal(self._read(name), self._read(origin))

    def _check_layer(self, module: str, layer: QuantizedWeight | TernaryLinear) -> None:
        shape = self._linear_shapes[module]
        if tuple(layer.codes.shape) != shape:
            raise ValueError(f"{module} must have {shape} codes; got {tuple(layer.codes.shape)}")
        if isinstance(layer, TernaryLinear):
            self._check_vectors(module, layer)
        scheme = self._scheme_of(layer)
        if isinstance(scheme, Scheme) and module in self._conv1d:
            scheme = replace(scheme, block=scheme.group_size or self._common_width())
        if self._widths:
            self._check_width(module, layer)
            stored = {self.naming.linear(name): width for name, width in self._widths.items()}
            rows = not scheme.symmetric and scheme.group_size is None
            columns = {self.naming.linear(n): self._linear_shapes[n][1] for n in self._widths}
            grid = scheme.group_size, scheme.symmetric
            scheme = MixedScheme(stored, *grid, columns if rows else {})
        if self.scheme is None or (scheme == self.scheme and scheme.act_order):
            self.scheme = scheme  # of all linears, one in such an order tells readers to look
        if scheme != self.scheme:
            raise ValueError(
                f"all layers must share one scheme; {module} has {scheme}, the layers before it "
                f"have {self.scheme}. Quantize them alike."
            )
        self.form.check(module, layer, self.dtype)

    def _common_width(self) -> int:
        """Return the largest number of inputs that all layers have some times."""
        return math.gcd(*(self._linear_shapes[name][1] for name in self.quantized))

    def _check_width(self, module: str, layer: QuantizedWeight) -> None:
        wanted = self._widths.get(module)
        if layer.bits != wanted:
            raise ValueError(f"{module} must have {wanted} bits as announced; got {layer.bits}")

    def _check_vectors(self, module: str, layer: TernaryLinear) -> None:
        """Accept a bias just where the model has one, and lengths that fit."""
        wanted = self._shapes.get(f"{module}.bias")
        found = None if layer.bias is None else tuple(layer.bias.shape)
        if found != wanted:
            raise ValueError(
                f"{module} must have {_described(wanted)} as in the float model; got "
                f"{_described(found)}"
            )
        width = layer.codes.shape[1]
        if layer.gain is not None and len(layer.gain) != width:
            raise ValueError(
                f"the gain of {module} must have {width} values; got {len(layer.gain)}"
            )

    def _check_names(self, model: nn.Module) -> None:
        if not self._layers:
            raise ValueError("an export needs at least one quantized layer; got none")
        if self.form is BITNET and (conv1d := sorted(self._conv1d & self.quantized)):
            raise ternary_conv1d_error(conv1d[0])
        for name in self._layers:
            if name not in self._linear_shapes:
                raise ValueError(f"{name} is not a linear of this model")
        stacked = {name for linears in self.naming.stacks.values() for name in linears}
        if missing := sorted(stacked - self.quantized):
            raise ValueError(f"every expert must be quantized; {missing[0]} is not")
        if self.form is BITNET:
            kept = model._keep_in_fp32_modules or ()
            check_conversion(self.linears, self.quantized, sorted(kept))
        for name in self._replaced:
            if name not in self._shapes or self._is_copy(name):
                raise ValueError(f"{name} is not a stored parameter of this model")
            if self._is_layers(name):
                raise ValueError(f"{name} is both quantized and replaced")


def _is_weight(name: str) -> bool:
    return name.endswith(".weight")


def _described(shape: tuple[int, ...] | None) -> str:
    return "no bias" if shape is None else f"a bias of shape {shape}"
