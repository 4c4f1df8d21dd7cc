"""An export to be evaluated: as a dense model in memory, or read from its files block by block.

Unpacked by our own code: the packages that read gptq do not fit into this environment, and
compressed-tensors, asked for float32, multiplies codes and scales in float32, which is not the
weight that readers of the export dtype compute with. Every weight must have the hash that
``normtweak.json`` records, which verification compares with what stock readers find. The linears of
a bitnet export become `TernaryInference` modules. In the export dtype all of it computes what
readers compute.
"""

import functools
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from normtweak_core.activations.rounding import round_inputs
from normtweak_core.errors import VerificationError
from normtweak_core.export.exported import ExportedWeights, exported_weights
from normtweak_core.export.manifest import tensor_sha256
from normtweak_core.export.verification.verify import read_manifest
from normtweak_core.memory import fits
from normtweak_core.model.half import sum_in_float32
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.skeleton import LazyWeights
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.spread import model_bytes, spread
from normtweak_core.ternary.inference import TernaryInference


def load_export(folder: Path, source: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Return the model that the files of an export stand for, dense in memory, in eval mode.

    Args:
        folder: The export.
        source: Folder of the float model, whose code runs the weights.
        dtype: What the model computes in.
        device: Where it lives.

    Raises:
        InputError: One of the folders is not what it should be.
        VerificationError: A weight of the export is not the one that was written.
    """
    files = _CheckedFiles(folder)
    model = load_causal_lm(source, dtype, device)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in files.weights:  # others are computed, ternary, or tied to one that is there
                tensor.copy_(files.read(name))
    round_inputs(model, files.weights.rounded)
    for name in files.ternary_linears:
        model.set_submodule(name, files.ternary_linear(name).to(device).eval())
    sum_in_float32(model)
    return model


def whole_or_spread_export(
    folder: Path, source: Path, dtype: torch.dtype, device: str
) -> PreTrainedModel:
    """Return the model of `load_export`, spread where it does not fit on its device."""
    if fits(model_bytes(source, dtype), device):
        return load_export(folder, source, dtype, device)
    return spread(source, dtype, device, open_weights=functools.partial(_ExportTensors, folder))


def stream_export(folder: Path, source: Path, dtype: torch.dtype, device: str) -> StreamedModel:
    """Return the model of `load_export` with no more than the block at hand in memory.

    The hash of a weight is compared when it is first read.
    """
    return StreamedModel(source, dtype, device, functools.partial(_ExportTensors, folder))


class _CheckedFiles:
    """The weights of an export, each compared with its hash when it is first read."""

    def __init__(self, folder: Path):
        self._folder, self._checked = folder, set[str]()
        self._manifest = read_manifest(folder)
        self.weights: ExportedWeights = exported_weights(folder, self._manifest)

    @property
    def ternary_linears(self) -> list[str]:
        """Names of the linears that are no dense weights."""
        return self.weights.linears if self.weights.ternary else []

    def __contains__(self, name: str) -> bool:
        """Say whether ``read`` returns this parameter."""
        return name in self.weights

    def read(self, name: str) -> Tensor:
        """Return a parameter of the float model as the export has it."""
        stored = self.weights.read(name)
        self._check_hash(name, stored)
        return stored

    def ternary_linear(self, name: str) -> TernaryInference:
        """Return what a ternary linear computes with."""
        for suffix, stored in self.weights.tensors(name).items():
            self._check_hash(f"{name}.{suffix}", stored)
        return TernaryInference(self.weights.linear(name), self.weights.scheme.rms_norm_eps)

    def _check_hash(self, name: str, stored: Tensor) -> None:
        if name in self._checked:
            return
        if tensor_sha256(stored) != self._manifest["tensors"][name]["sha256"]:
            raise VerificationError(
                f"{name} of {self._folder} must be what was written; it has another hash. "
                "Export again."
            )
        self._checked.add(name)


@runtime_checkable
class Replacement(Protocol):
    """Parameters that take the place of a float model's."""

    def __contains__(self, name: str) -> bool:
        """Say whether ``read`` returns this parameter."""
        ...

    def read(self, name: str) -> Tensor:
        """Return a parameter."""
        ...


class ReplacedTensors(LazyWeights):
    """Tensors from elsewhere under the names that the float model has for them."""

    def __init__(self, files: Replacement, model: PreTrainedModel, source: Path, *where: Any):
        super().__init__(model, source, *where)
        self._files = files
        # Copies of tied weights are not stored there, whether the float model stores them or not.
        self.missing |= {name for name in model.all_tied_weights_keys if name not in files}

    def names(self, prefix: str) -> list[str]:
        """Return the names of what is below a prefix, without copies of tied weights."""
        return [name for name in super().names(prefix) if name not in self.missing]

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """Return tensors as fresh copies on the device, in the dtype of the model."""
        tensors = super().read([name for name in names if name not in self._files])
        for name in names:
            if name in self._files:
                tensors[name] = self._converted(name, self._files.read(name))
        return tensors


class _ExportTensors(ReplacedTensors):
    """The tensors of an export."""

    def __init__(self, folder: Path, *where: Any):
        super().__init__(_CheckedFiles(folder), *where)
        self._ternary = frozenset(self._files.ternary_linears)

    def names(self, prefix: str) -> list[str]:
        return [
            name for name in super().names(prefix) if name.rpartition(".")[0] not in self._ternary
        ]

    def finish(self, module: nn.Module, prefix: str) -> None:
        """Let linears be and read what they are, and multiply halves as readers' kernels do."""
        inside = [name for name in self._files.weights.rounded if name.startswith(f"{prefix}.")]
        round_inputs(module, (name.removeprefix(f"{prefix}.") for name in inside if prefix))
        for name in self._files.ternary_linears if prefix else ():
            if name.startswith(f"{prefix}."):
                linear = self._files.ternary_linear(name).to(self._device)
                module.set_submodule(name.removeprefix(f"{prefix}."), linear)
        sum_in_float32(module)
