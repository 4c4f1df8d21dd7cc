"""An export as a dense model in memory, to be evaluated."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from normtweak_core.errors import VerificationError
from normtweak_core.export.float_type import DTYPES
from normtweak_core.export.formats import FORMATS
from normtweak_core.export.manifest import tensor_sha256
from normtweak_core.export.probe import ExportedWeights
from normtweak_core.export.scheme import Scheme
from normtweak_core.export.verify import read_manifest
from normtweak_core.model.loading import load_causal_lm


def load_export(folder: Path, source: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Return the dense model that the files of an export stand for, in eval mode.

    Unpacked by our own code: the packages that read gptq do not fit into this environment, and
    compressed-tensors, asked for float32, multiplies codes and scales in float32, which is not the
    weight that readers of the export dtype compute with. Every weight must have the hash that
    ``normtweak.json`` records, which verification compares with what stock readers find.

    Args:
        folder: The export.
        source: Folder of the float model, whose code runs the weights.
        dtype: What the model computes in.
        device: Where it lives.

    Raises:
        InputError: One of the folders is not what it should be.
        VerificationError: A weight of the export is not the one that was written.
    """
    manifest = read_manifest(folder)
    export = manifest["export"]
    scheme = Scheme(export["bits"], export["group_size"], export["symmetric"])
    weights = ExportedWeights(folder, FORMATS[export["format"]], scheme, DTYPES[export["dtype"]])
    model = load_causal_lm(source, dtype, device)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name not in weights:  # computed, or tied to one that is there
                continue
            stored = weights.read(name)
            if tensor_sha256(stored) != manifest["tensors"][name]["sha256"]:
                raise VerificationError(
                    f"{name} of {folder} must be what was written; it has another hash. "
                    "Export again."
                )
            tensor.copy_(stored)
    return model
