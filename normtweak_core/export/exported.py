"""The parameters that an export stands for, read one by one from its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normtweak_core.experts.naming import RecordedNames
from normtweak_core.export.float_type import DTYPES
from normtweak_core.export.formats.scheme import AnyScheme, Scheme, recorded_scheme
from normtweak_core.export.formats.table import FORMATS, Format
from normtweak_core.model.checkpoint import stored_tensors
from normtweak_core.stored import read_tensor


class ExportedWeights:
    """What the files of an export hold: whole quantized linears, and every other parameter."""

    def __init__(
        self,
        folder: Path,
        form: Format,
        scheme: AnyScheme,
        dtype: torch.dtype,
        entries: Mapping[str, Any],
    ):
        """Read the headers of the weight files.

        Args:
            folder: The written payload.
            form: Its format.
            scheme: What its quantized linears share, or their widths.
            dtype: The export dtype, to which a dequantized weight is rounded.
            entries: What the manifest says of its tensors.

        """
        self._names = RecordedNames(entries)
        self._stored = stored_tensors(folder)
        self._form, self.dtype = form, dtype
        self.scheme = scheme
        marker = f".{form.suffixes[0]}"
        self.linears = sorted(
            name.removesuffix(marker) for name in self._stored if name.endswith(marker)
        )
        self._quantized = frozenset(self.linears)
        # Whether quantized weights are those of Conv1D layers, [in, out] in the model.
        self.transposed = isinstance(scheme, Scheme) and scheme.block is not None
        rounds = isinstance(scheme, Scheme) and scheme.activation_bits is not None
        # Names in the model of the dense linears that read rounded activations.
        self.rounded = sorted(
            name.removesuffix(".weight")
            for name, entry in entries.items()
            if rounds and entry["quantized"]
        )

    @property
    def format(self) -> str:
        """Name of the format."""
        return self._form.name

    @property
    def ternary(self) -> bool:
        """Whether the linears are no dense weights, but modules that round what they read."""
        return not self._form.dense

    def __contains__(self, name: str) -> bool:
        """Say whether ``read`` returns this parameter of the float model."""
        if name in self._names.stacks:
            return True
        module, _, last = (name := self._names.tensor(name)).rpartition(".")
        if module in self._quantized:
            return self._form.dense and (last == "weight" or name in self._stored)
        return name in self._stored

    def read(self, name: str) -> Tensor:
        """Return a parameter, dequantized where it is quantized."""
        if name in self._names.stacks:
            return self._stack(name)
        module, _, last = (name := self._names.tensor(name)).rpartition(".")
        if module in self._quantized and last == "weight":
            weight = self.linear(module).dequantize().to(self.dtype)
            return weight.T.contiguous() if self.transposed else weight
        return read_tensor(self._stored[name])

    def _stack(self, name: str) -> Tensor:
        """Return a stacked weight, dequantized linear by linear."""
        linears = self._names.stacks[name]
        stack = torch.empty(self._names.shapes[name], dtype=self.dtype)
        for part, module in zip(stack.view(len(linears), -1), linears, strict=True):
            part.copy_(self.linear(module).dequantize().flatten())
        return stack

    def linear(self, module: str) -> Any:
        """Return a quantized linear: a `TernaryLinear` of bitnet, else a `QuantizedWeight`."""
        return self._form.unpack(self.tensors(module), self.scheme.of_linear(module))

    def tensors(self, module: str) -> dict[str, Tensor]:
        """Return the stored tensors of a quantized linear by the last part of their names."""
        names = {suffix: f"{module}.{suffix}" for suffix in self._form.suffixes}
        return {
            suffix: read_tensor(self._stored[name])
            for suffix, name in names.items()
            if name in self._stored
        }


def exported_weights(folder: Path, manifest: Mapping[str, Any]) -> ExportedWeights:
    """Return what the files of a finished export hold, read as its manifest says."""
    export = manifest["export"]
    form, scheme = FORMATS[export["format"]], recorded_scheme(export)
    return ExportedWeights(folder, form, scheme, DTYPES[export["dtype"]], manifest["tensors"])
