"""A checkpoint of another tool in the place of a float model's weights: what a run starts from."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from normtweak_core.errors import InputError
from normtweak_core.experts.naming import WEIGHT, Naming
from normtweak_core.export.float_type import DTYPES
from normtweak_core.export.foreign.layouts import read_packing
from normtweak_core.export.foreign.linears import PackedLinear, packed_linears
from normtweak_core.export.foreign.unpacking import unpacked
from normtweak_core.export.formats.checks import FloatTypeError
from normtweak_core.export.loading import ReplacedTensors
from normtweak_core.model.checkpoint import StoredTensor, stored_tensors
from normtweak_core.model.skeleton import OLD_MASK, LazyWeights, build_skeleton
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.model.structure import find_linears, linear_weight
from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.stored import read_tensor


class BaseWeights:
    """What a checkpoint holds, under the names that the float model in memory has for it."""

    def __init__(self, folder: Path, source: Path):
        """Match names and shapes; no weight is read yet.

        Args:
            folder: The checkpoint.
            source: Folder of the float model that it was made from.

        Raises:
            InputError: It is none that is read here, or it is of another model.
        """
        self.folder = folder
        self._packed = packed_linears(folder, read_packing(folder))
        model = build_skeleton(source, torch.float32)
        self._float = LazyWeights(model, source, torch.float32, "cpu")
        self._naming = Naming(model, self._float)
        self._shapes = {name: tuple(one.shape) for name, one in model.state_dict().items()}
        self._tied = dict(model.all_tied_weights_keys)
        self._computed = {name for name, _ in model.named_buffers()}
        self._prefix = f"{model.base_model_prefix}."
        self._left = dict(stored_tensors(folder))  # what nothing has asked for yet
        linears = find_linears(model)
        self._conv1d = {name for name, one in linears.items() if isinstance(one, Conv1D)}
        self._layers = self._find_layers(
            {name: tuple(linear_weight(one).shape) for name, one in linears.items()}
        )
        self._others = self._find_others()
        self._require_all()

    @property
    def linears(self) -> list[str]:
        """Full names of the quantized linears."""
        return list(self._layers)

    def linear(self, name: str) -> QuantizedWeight:
        """Return a quantized linear.

        Raises:
            InputError: Its tensors are no grid.
        """
        return unpacked(self._layers[name])

    def stored_name(self, name: str) -> str:
        """Return what a linear is called in the files of an export."""
        return self._naming.linear(name)

    def below(self, prefix: str) -> dict[str, QuantizedWeight]:
        """Return the quantized linears of a block by their names in it."""
        inside = [name for name in self._layers if name.startswith(f"{prefix}.")]
        return {name.removeprefix(f"{prefix}."): self.linear(name) for name in inside}

    def __contains__(self, name: str) -> bool:
        """Say whether ``read`` returns this parameter of the float model."""
        return (
            name in self._others
            or name in self._stacks
            or name.removesuffix(WEIGHT) in self._layers
        )

    def read(self, name: str) -> Tensor:
        """Return a parameter; of a quantized linear its float32 weight."""
        if name in self._others:
            return read_tensor(self._others[name])
        if name not in self._stacks:
            weight = self.linear(linear := name.removesuffix(WEIGHT)).dequantize()
            return weight.T.contiguous() if linear in self._conv1d else weight
        linears = self._stacks[name]
        stack = torch.empty(self._shapes[name])
        for part, linear in zip(stack.view(len(linears), -1), linears, strict=True):
            part.copy_(self.linear(linear).dequantize().flatten())
        return stack

    @functools.cached_property
    def others(self) -> Mapping[str, Tensor]:
        """All parameters that are no quantized weights, by full name, read when asked for."""
        return _Read({name: one for name, one in self._others.items() if name in self._shapes})

    def refuses(self, dtype: torch.dtype) -> str | None:
        """Return why a float type does not hold the scales as they are; None where it does."""
        for name in self.linears:
            scales = self.linear(name).scales
            if not torch.equal(scales.to(dtype).to(torch.float32), scales):
                return f"it does not hold the scales of {name} as they are"
        return None

    def require_held(self, dtype: torch.dtype, form: str) -> None:
        """Accept a float type that holds the scales as they are.

        Args:
            dtype: The float type.
            form: Of the export.

        Raises:
            FloatTypeError: It does not.
        """
        if (why := self.refuses(dtype)) is not None:
            holds = [name for name, one in DTYPES.items() if self.refuses(one) is None]
            raise FloatTypeError(str(dtype).removeprefix("torch."), why, holds, form)

    def streamed(self, source: Path, dtype: torch.dtype, device: str) -> StreamedModel:
        """Return the model with these weights, read block by block.

        Args:
            source: Folder of the float model.
            dtype: What it computes in.
            device: Where.
        """
        return StreamedModel(source, dtype, device, functools.partial(ReplacedTensors, self))

    def _find_layers(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, PackedLinear]:
        found = {}
        for name, shape in shapes.items():
            stored = self._name(self._naming.linear(name), self._packed)
            if stored is None:
                continue
            one = found[name] = self._packed[stored]
            for part in one.parts:
                del self._left[f"{stored}.{part}"]
            if (one.rows, one.columns) != shape:
                raise self._refused(
                    f"be made from the float model, whose {name} is {shape[0]} x {shape[1]}",
                    f"there it is {one.rows} x {one.columns}",
                )
        if unknown := sorted({*self._packed} - {one.name for one in found.values()}):
            raise self._refused("quantize linears of the model alone", f"{unknown[0]} is none")
        self._stacks = {
            stack: linears
            for stack, linears in self._naming.stacks.items()
            if any(linear in found for linear in linears)
        }
        for linears in self._stacks.values():
            if lacking := [linear for linear in linears if linear not in found]:
                raise self._refused("quantize every expert", f"{lacking[0]} is not")
        return found

    def _find_others(self) -> dict[str, StoredTensor]:
        found = {}
        for name, shape in self._shapes.items():
            if name in self._stacks or name.removesuffix(WEIGHT) in self._layers:
                continue
            stored = self._name(self._naming.tensor(name), self._left)
            if stored is None:
                continue
            one = self._left.pop(stored)
            origin = self._tied.get(name)
            if origin in found and _same(one, found[origin]):
                continue  # a copy
            if one.shape != shape:
                raise self._refused(
                    f"be made from the float model, whose {name} has shape {list(shape)}",
                    f"there it has {list(one.shape)}",
                )
            found[name] = one
        return found

    def _require_all(self) -> None:
        for name in self._shapes:
            origin = self._tied.get(name)
            if name not in self and (origin is None or origin not in self):
                raise self._refused("hold every weight of the model", f"{name} is absent")
        for name, one in self._left.items():
            computed = name in self._computed or self._prefix + name in self._computed
            if computed or OLD_MASK.search(name) or not read_tensor(one).any():
                continue  # biases of zeros, for one, which the model has no place for
            raise self._refused(
                "hold weights of the model alone", f"{name} {list(one.shape)} is none of them"
            )

    def _name(self, name: str, among: Mapping[str, object]) -> str | None:
        """Return what a tensor or linear is called in the files, whose prefix may be another."""
        own = (name, name.removeprefix(self._prefix), self._prefix + name)
        return next((one for one in own if one in among), None)

    def _refused(self, required: str, found: str) -> InputError:
        return InputError(
            f"must {required}",
            key="base",
            found=f"in {self.folder} {found}",
            remedy="give an export of this model, or the model of this export",
        )


class _Read(Mapping[str, Tensor]):
    """Tensors that are read when they are asked for."""

    def __init__(self, places: Mapping[str, StoredTensor]):
        self._places = places

    def __getitem__(self, name: str) -> Tensor:
        return read_tensor(self._places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    return one.shape == other.shape and torch.equal(read_tensor(one), read_tensor(other))
