"""The export that a fine-tuning starts from, as every stage reads it."""

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normtweak_core.errors import InputError
from normtweak_core.export.payload import payload_files
from normtweak_core.export.payload import payload_sha256 as hash_of_payload
from normtweak_core.export.verification.verify import read_manifest
from normtweak_core.finetune.source import ExportSource
from normtweak_core.lazy import lazy
from tasks.engine.artifacts import ArtifactRef, temporary_beside
from tasks.engine.environment import state_root
from tasks.models.export_folder import imported_folder
from tasks.models.job import torch_dtype
from tasks.results import ExportResult

if TYPE_CHECKING:
    from torch import Tensor

    from normtweak_core.export.exported import ExportedWeights
    from normtweak_core.quantization.weight import QuantizedWeight

exports = lazy("normtweak_core.export.exported")
grids = lazy("normtweak_core.finetune.model")


def export_in_root(source: ExportSource) -> ExportResult:
    """Return the export as a stage result; one that lies elsewhere is copied under the state root.

    Raises:
        InputError: Its files are not those that its manifest records.
    """
    if (found := hash_of_payload(source.folder)) != source.payload_sha256:
        raise InputError(
            f"model.source must be an export as it was written, with payload "
            f"{source.payload_sha256[:12]}; that of {source.folder} is {found[:12]}: export again."
        )
    folder = source.folder
    if not folder.is_relative_to(state_root()):
        folder = imported_folder(state_root(), source.payload_sha256)
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_beside(folder)
            shutil.copytree(source.folder, temporary)
            temporary.rename(folder)
    manifest = read_manifest(folder)
    return ExportResult(
        folder=folder.relative_to(state_root()).as_posix(),
        export_sha256=source.payload_sha256,
        dtype=source.dtype,
        files=[ArtifactRef.to(path) for path in payload_files(folder)],
        manifest=ArtifactRef.to(folder / "normtweak.json"),
        probe=ArtifactRef.to(folder / "verify" / "probe.safetensors"),
        bits_per_weight=manifest["bits_per_weight"],
        size_bytes=manifest["size_bytes"],
    )


@dataclass(frozen=True)
class StartingPoint:
    """What is trained on: the export, and how its grid is read."""

    source: ExportSource
    export: ExportResult

    @property
    def identity(self) -> str:
        """What it is to the key of what is made from it."""
        return self.export.identity

    @property
    def folder(self) -> Path:
        """Folder of the export."""
        return state_root() / self.export.folder

    @functools.cached_property
    def weights(self) -> "ExportedWeights":
        """What the files of the export hold."""
        return exports.exported_weights(self.folder, read_manifest(self.folder))

    def put_into(self, module: Any, config: Any, seed: int, prefix: str = "") -> Any:
        """Return a float block or model, in place, with what the export has in its place.

        Args:
            module: A block, or the whole model.
            config: The fine-tuning's.
            seed: Of the recipe.
            prefix: What names in the module lack in front of those in the whole model.
        """
        layers = {
            name.removeprefix(prefix): self.weights.linear(name)
            for name in self.weights.linears
            if name.startswith(prefix)
        }
        return grids.put_on_grids(
            module,
            layers,
            self._other_parameters(module, layers, prefix),
            config,
            self.source.levels,
            torch_dtype(self.source.dtype),
            seed,
            prefix,
        )

    def _other_parameters(
        self, module: Any, layers: "dict[str, QuantizedWeight]", prefix: str
    ) -> "dict[str, Tensor]":
        """Return the parameters that are no quantized weight, as the export stores them."""
        return {
            name: self.weights.read(prefix + name)
            for name, _ in module.named_parameters()
            if prefix + name in self.weights and name.removesuffix(".weight") not in layers
        }
